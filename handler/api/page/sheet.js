// The contact sheet: a strip of film with a frame for each task, newest first.

import { by, h, put, say, svg } from "./dom.js";
import { ENDED, errorWords, label, stateWords } from "./words.js";

const ROUND = 2 * Math.PI * 20;
const CROSS = "M24 26C41 42 56 57 78 73M75 22C60 40 42 58 27 78";

export const hash = (id, index = 0) => `#task/${id}${index ? `/${index + 1}` : ""}`;
export const title = (task) => task.prompt ?? task.task_id;

// A ring that fills, with the percentage in it.
export function ring() {
	const arc = svg("circle", { class: "arc", cx: 24, cy: 24, r: 20, "stroke-dasharray": ROUND });
	const number = h("span", { class: "percent" });
	const element = h("span", { class: "ring" },
		svg("svg", { viewBox: "0 0 48 48", "aria-hidden": "true" }, svg("circle", { cx: 24, cy: 24, r: 20 }), arc), number);
	const set = (fraction) => {
		arc.setAttribute("stroke-dashoffset", ROUND * (1 - fraction));
		say(number, `${Math.floor(fraction * 100)} %`);
	};
	return { element, set };
}

// How far a task is: between two answers it goes on at its pace, never to the end by itself.
export function progressOf({ task, taken }, now, frozen) {
	if (!task.progress || task.status !== "processing") return 0;
	const { fraction, eta_seconds: eta } = task.progress, since = frozen ? 0 : (now - taken) / 1000;
	return eta > 0 ? Math.max(fraction, Math.min(0.99, fraction + ((1 - fraction) * since) / (eta + 0.5))) : fraction;
}

const cross = (said) => svg("svg", { class: "cross", viewBox: "0 0 100 100", ...said }, svg("path", { d: CROSS }));

export const picture = ({ url, unsafe, width, height }, alt, onerror) => (unsafe
	? cross({ role: "img", "aria-label": "Not kept: unsafe" })
	: h("img", { src: url, alt, width, height, class: Math.max(width, height) <= 160 && "small", onerror }));

// What a frame holds as long as there is no picture.
export function inside(task, { element }) {
	if (ENDED.has(task.status)) return cross({ "aria-hidden": "true" });
	return [task.preview_url && h("img", { class: "preview", src: task.preview_url, alt: "" }), element];
}

export class Sheet {
	#tasks;
	#line;
	#cancel;
	#frames = new Map(); // id -> Frame

	constructor(tasks, line, cancel) {
		this.#tasks = tasks;
		this.#line = line;
		this.#cancel = cancel;
		tasks.addEventListener("change", ({ detail }) => this.#draw(detail));
		tasks.addEventListener("gone", ({ detail }) => this.#remove(detail));
		tasks.addEventListener("listed", () => this.#counted());
	}

	// Ids as they lie on the sheet.
	order() { return [...by("sheet").children].map(({ dataset }) => dataset.id); }

	tick(now, frozen) {
		for (const [id, frame] of this.#frames) frame.tick(this.#tasks.get(id), now, frozen);
	}

	#draw(id) {
		const entry = this.#tasks.get(id);
		let frame = this.#frames.get(id);
		if (!frame) {
			frame = new Frame(id, entry, this.#cancel, () => this.#tasks.renew(id));
			this.#frames.set(id, frame);
			const { made } = frame.element.dataset;
			by("sheet").insertBefore(frame.element, [...by("sheet").children].find(({ dataset }) => Number(dataset.made) < Number(made)) ?? null);
		}
		frame.update(entry);
		frame.tick(entry, Date.now(), this.#line.lost !== null);
		this.#counted();
	}

	#remove(id) {
		this.#frames.get(id)?.element.remove();
		this.#frames.delete(id);
		this.#counted();
	}

	#counted() {
		const all = this.#tasks.all(), going = all.filter((task) => !ENDED.has(task.status)).length;
		const pictures = all.reduce((sum, { images }) => sum + images.filter((one) => !one.unsafe).length, 0);
		by("empty").hidden = all.length > 0;
		by("older").hidden = !this.#tasks.more;
		say(by("count"), all.length ? `${pictures} ${pictures === 1 ? "picture" : "pictures"}${going ? `, ${going} under way` : ""}` : "");
	}
}

class Frame {
	#ring = ring();
	#window = h("span", { class: "window" });
	#prompt = h("span", { class: "prompt" });
	#state = h("span", { class: "state" });
	#stop;
	#shown = "";
	#broken;

	constructor(id, { task }, cancel, broken) {
		this.#broken = broken;
		this.#stop = h("button", { type: "button", class: "stop", onclick: () => cancel(id) },
			svg("svg", { viewBox: "0 0 16 16", "aria-hidden": "true" }, svg("path", { d: "M3 3l10 10M13 3L3 13" })));
		const edge = (kind) => h("span", { class: kind, "aria-hidden": "true" });
		this.element = h("li", { class: "frame", "data-id": id, "data-made": Date.parse(task.created_at) },
			h("a", { href: hash(id) }, h("span", { class: "film" }, edge("edge"), this.#window, edge("edge low")),
				h("span", { class: "caption" }, this.#prompt, this.#state)), this.#stop);
	}

	update({ task }) {
		const { status, images, error, preview_url: preview } = task, ended = ENDED.has(status);
		this.element.dataset.status = status;
		say(this.#prompt, title(task));
		this.#stop.hidden = ended;
		this.#stop.setAttribute("aria-label", `Cancel: ${title(task)}`);
		if (ended) say(this.#state, status === "failed" ? errorWords(error?.code) : label(status));
		const shows = JSON.stringify([status, images, preview]);
		if (shows === this.#shown) return;
		this.element.classList.toggle("fresh", this.#shown !== "" && status === "completed");
		this.#shown = shows;
		// The prompt stands beside it: these pictures need no words of their own.
		put(this.#window, images.length ? images.map((image) => picture(image, "", this.#broken)) : inside(task, this.#ring));
	}

	tick(entry, now, frozen) {
		if (ENDED.has(entry.task.status)) return;
		this.#ring.set(progressOf(entry, now, frozen));
		say(this.#state, stateWords(entry, now, frozen));
	}
}
