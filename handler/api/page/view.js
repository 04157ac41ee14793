// A task looked at closely: its pictures, everything that made them, and what can be done with it.

import { by, h, put, say } from "./dom.js";
import { hash, inside, picture, progressOf, ring, title } from "./sheet.js";
import { ENDED, bytes, errorWords, failure, fieldName, seconds, stateWords, when } from "./words.js";

const STAGES = ["queue", "load", "text", "denoise", "decode", "encode", "upload"];
const ACTS = ["download", "retry", "again", "use", "cancel"];

export class View {
	#tasks;
	#line;
	#acts;
	#order;
	#id = null;
	#index = 0;
	#shown = "";
	#parts = null;

	// `acts`: again(request), use(request), retry(id), cancel(id); `order()`: the ids as the sheet has them.
	constructor(tasks, line, acts, order) {
		this.#tasks = tasks;
		this.#line = line;
		this.#acts = acts;
		this.#order = order;
		const dialog = by("view");
		dialog.addEventListener("close", () => {
			if (this.#id !== null) history.pushState(null, "", location.pathname + location.search);
			this.#left();
		});
		dialog.addEventListener("click", ({ target }) => { if (target === dialog) dialog.close(); });
		dialog.addEventListener("keydown", (event) => this.#key(event));
		tasks.addEventListener("change", ({ detail }) => { if (detail === this.#id) this.#update(); });
		tasks.addEventListener("gone", ({ detail }) => { if (detail === this.#id) this.#gone(); });
		addEventListener("hashchange", () => this.route());
		addEventListener("resize", () => this.#fit());
	}

	// Shows what the address names: a view survives a reload, goes with the back button.
	route() {
		const named = /^#task\/([\w.-]+)(?:\/(\d+))?$/.exec(location.hash);
		if (!named) {
			this.#left();
			return by("view").close();
		}
		const [, id, number = 1] = named;
		if (id !== this.#id) {
			this.#id = id;
			this.#shown = "";
			this.#build();
		}
		this.#index = number - 1;
		if (!this.#tasks.get(id)?.task) this.#tasks.watch(id);
		if (!by("view").open) by("view").showModal();
		return this.#update();
	}

	// Time has passed.
	tick(now, frozen) {
		const entry = this.#tasks.get(this.#id);
		if (!entry?.task) return;
		this.#parts.ring.set(progressOf(entry, now, frozen));
		say(this.#parts.state, stateWords(entry, now, frozen));
	}

	#left() {
		this.#id = null;
		document.title = "Darkroom";
	}

	#build() {
		const button = (words, kind, onclick) => h("button", { type: "button", class: kind, onclick }, words);
		const task = () => this.#tasks.get(this.#id).task;
		const parts = this.#parts = {
			title: h("h2", { id: "view-title" }, "Looking for it…"),
			state: h("p", { class: "state", role: "status" }),
			figure: h("div", { class: "print" }),
			strip: h("div", { class: "strip" }),
			wrong: h("div", { class: "wrong" }),
			download: button("Download", "main", () => this.#download()),
			retry: button("Try it again", "main", () => this.#do(() => this.#acts.retry(this.#id))),
			again: button("Again with another seed", "plain", () => this.#do(() => this.#acts.again(task().request))),
			use: button("Use these settings", "plain", () => { const { request } = task(); by("view").close(); this.#acts.use(request); }),
			cancel: button("Cancel", "plain", () => this.#do(() => this.#acts.cancel(this.#id))),
			said: h("p", { class: "said", role: "alert" }),
			facts: h("div", { class: "facts" }),
			ring: ring(),
		};
		for (const name of ACTS) parts[name].hidden = true;
		put(by("view"), h("div", { class: "shown" },
			h("div", { class: "easel" }, parts.figure, parts.strip),
			h("div", { class: "about" }, button("Close", "plain close", () => by("view").close()), parts.title, parts.state, parts.wrong,
				h("div", { class: "acts" }, ACTS.map((name) => parts[name])), parts.said, parts.facts)));
	}

	#update() {
		const task = this.#tasks.get(this.#id)?.task, parts = this.#parts;
		if (!task) return;
		const { request, images } = task, ended = ENDED.has(task.status), broken = () => this.#tasks.renew(this.#id);
		this.#index = Math.max(0, Math.min(this.#index, images.length - 1));
		const image = images[this.#index];
		const there = [image && !image.unsafe, ended && !images.length && request, request, request, !ended];
		ACTS.forEach((name, index) => { parts[name].hidden = !there[index]; });
		this.tick(Date.now(), this.#line.lost !== null);
		const shows = JSON.stringify([task, this.#index]);
		if (shows === this.#shown) return;
		this.#shown = shows;
		say(parts.title, title(task));
		document.title = `${title(task).slice(0, 60)} · Darkroom`;
		put(parts.figure, image ? picture(image, title(task), broken) : inside(task, parts.ring));
		put(parts.strip, images.length > 1 && images.map((one, index) => h("a", {
			href: hash(task.task_id, index), "aria-current": index === this.#index && "true", "aria-label": `Picture ${index + 1} of ${images.length}`,
		}, picture(one, "", broken))));
		put(parts.wrong, wrong(task));
		put(parts.facts, facts(task, image));
		this.#fit();
	}

	// Small pictures grow by whole factors, pixel for pixel: what is seen is what is there.
	#fit() {
		const image = this.#id !== null && this.#parts.figure.querySelector(".small");
		if (!image) return;
		const [width, height] = ["width", "height"].map((side) => Number(image.getAttribute(side)));
		const factor = Math.min((this.#parts.figure.parentElement.clientWidth - 50) / width, (innerHeight * 0.72) / height, 640 / width);
		image.style.width = `${width * Math.max(1, Math.floor(factor))}px`;
	}

	async #do(act) {
		say(this.#parts.said, "");
		try {
			await act();
		} catch (fault) {
			say(this.#parts.said, failure(fault));
		}
	}

	// Saved under its task's name, after its bytes were held against the record.
	async #download() {
		const { task_id: id, images } = this.#tasks.get(this.#id).task, index = this.#index, image = images[index], { said } = this.#parts;
		say(said, "");
		let body;
		try {
			const answer = await fetch(image.url, { credentials: "omit" });
			if (!answer.ok) throw new Error(answer.status);
			body = await answer.blob();
		} catch {
			// A bucket that lets no page read it still shows a picture to whoever opens it.
			open(image.url, "_blank", "noopener");
			return say(said, "Opened in a tab of its own, to be saved from there.");
		}
		const sum = await sha256(body);
		if (sum && sum !== image.sha256) return say(said, "Not saved: these are not the bytes that the record tells of.");
		const url = URL.createObjectURL(body);
		h("a", { href: url, download: `${id}-${index}.${image.content_type.slice(6).replace("jpeg", "jpg")}` }).click();
		setTimeout(() => URL.revokeObjectURL(url), 10_000);
		return say(said, sum ? "Saved; its SHA-256 is right." : "Saved.");
	}

	// Left and right: the task's other pictures, then the tasks beside it on the sheet.
	#key(event) {
		const way = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
		if (!way || event.altKey || event.ctrlKey || event.metaKey || event.shiftKey) return;
		const next = this.#index + way, order = this.#order(), place = order.indexOf(this.#id);
		if (this.#tasks.get(this.#id)?.task?.images[next]) location.hash = hash(this.#id, next);
		else if (place >= 0 && order[place + way]) location.hash = hash(order[place + way]);
	}

	#gone() {
		say(this.#parts.title, "Not here");
		say(this.#parts.state, errorWords("NOT_FOUND"));
		for (const name of ACTS) this.#parts[name].hidden = true;
	}
}

async function sha256(blob) {
	if (!crypto.subtle) return null; // plain HTTP from another machine
	const sum = await crypto.subtle.digest("SHA-256", await blob.arrayBuffer());
	return [...new Uint8Array(sum)].map((one) => one.toString(16).padStart(2, "0")).join("");
}

function wrong({ error, status }) {
	if (!error || status === "cancelled") return null;
	return [
		h("p", {}, h("strong", {}, errorWords(error.code))), h("p", {}, error.message),
		h("p", { class: "hint" }, `${error.code}${status === "pending" ? "; it is tried again" : ""}`),
	];
}

// All that is known of a picture, the seed first.
function facts(task, image) {
	const { prompt: _, task_id: __, ...request } = task.request ?? {}, { model, timings } = task;
	const { seed, width, height } = image ?? request;
	const rows = [
		...Object.entries({ seed, ...request, ...(image && { seed, width, height }) }).map(([name, value]) => [fieldName(name), [value].flat().join(", ")]),
		["File", image && `${image.content_type}, ${bytes(image.bytes)}`],
		["Model", model && `${model.id}${model.revision ? `@${model.revision}` : ""}, ${model.pipeline}, ${model.dtype}`],
		["Batch", task.batch_size], ["Attempt", task.attempt || null], ["Asked", when(task.created_at)],
		["Developed", when(task.completed_at)], ["Kept until", when(task.expires_at)], ["Task", task.task_id], ["Again of", task.origin],
		["SHA-256", image?.sha256], ["Note", task.warnings?.map(({ message }) => message).join("; ")],
	].filter(([, value]) => value !== null && value !== undefined && value !== "");
	return [h("dl", {}, rows.map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value)))), timings && times(timings)];
}

// What the time went into.
function times(timings) {
	const spent = STAGES.filter((name) => timings[name] > 0), all = spent.reduce((sum, name) => sum + timings[name], 0);
	const bar = h("div", { class: "bar", "aria-hidden": "true" }, spent.map((name) => h("span", { class: `t-${name}` })));
	[...bar.children].forEach((part, index) => { part.style.flexGrow = timings[spent[index]] / all; });
	return h("div", { class: "times" }, h("h3", {}, `Time: ${seconds(all)}`), bar,
		h("ul", {}, spent.map((name) => h("li", {}, h("span", { class: `dot t-${name}` }), `${name} ${seconds(timings[name])}`))));
}
