// The form: fields as the model card has them, faults shown where they are.

import { newKey } from "./api.js";
import { by, h, put, say } from "./dom.js";
import { errorWords, failure, fieldName } from "./words.js";

const DRAFT = "darkroom-draft";
const SKIPPED = new Set(["prompt", "task_id"]);

export class Form {
	#parameters = [];
	#drawn = "";
	#send;
	#sending = false;
	#pending = { body: "", key: "" };

	// `send(request, key)` submits; the same request again, after a lost answer, has the same key.
	constructor(send) {
		this.#send = send;
		by("form").addEventListener("submit", (event) => { event.preventDefault(); this.#submit(); });
		by("form").addEventListener("input", ({ target }) => this.#edited(target));
		by("prompt").addEventListener("keydown", (event) => {
			if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) this.#submit();
		});
		by("defaults").addEventListener("click", () => this.#fill({}));
		// Open where there is room for it.
		by("settings").open = matchMedia("(min-width: 60rem)").matches;
	}

	// Draws the fields, unless they are these already: what somebody is typing stays.
	draw(card) {
		const drawn = JSON.stringify(card?.parameters);
		if (!card || drawn === this.#drawn) return;
		const typed = this.#drawn ? this.#values() : JSON.parse(sessionStorage.getItem(DRAFT) ?? "{}");
		this.#drawn = drawn;
		this.#parameters = card.parameters.filter(({ name }) => !SKIPPED.has(name));
		put(by("fields"), this.#parameters.map(field));
		by("prompt").value ||= typed.prompt ?? "";
		this.#fill(typed);
	}

	// A prompt alone, or another task's whole request, to be changed and sent anew.
	use(request) {
		by("prompt").value = request.prompt;
		this.#fill({ ...this.#values(), ...request });
		by("prompt").focus();
	}

	#control(name) { return by("form").elements.namedItem(name); }

	#fill(values) {
		for (const { name, default: usual } of this.#parameters) {
			const value = values[name] ?? usual ?? "";
			this.#control(name).value = Array.isArray(value) ? value.join(", ") : String(value);
		}
		this.#changed();
	}

	// What stands in the fields, as text; for the draft.
	#values() {
		const names = this.#parameters.map(({ name }) => name);
		return Object.fromEntries(["prompt", ...names].map((name) => [name, this.#control(name).value]));
	}

	// The request, and the faults that need no server: a number field gives out no text.
	#request() {
		const request = { prompt: by("prompt").value }, faults = [];
		for (const { name } of this.#parameters) {
			const control = this.#control(name), text = control.value.trim();
			if (control.validity?.badInput) faults.push({ field: name, message: "This is not a number." });
			else if (text === "" || control.disabled || control.closest?.("[hidden]")) continue;
			else if (control.type === "number") request[name] = Number(text);
			else if (name === "tags") request.tags = text.split(",").map((tag) => tag.trim()).filter(Boolean);
			else request[name] = text;
		}
		return { request, faults };
	}

	async #submit() {
		if (this.#sending) return;
		say(by("said"), "");
		this.#clear(by("form"));
		const { request, faults } = this.#request();
		if (faults.length) return this.#show(faults, "Not sent.");
		const body = JSON.stringify(request);
		if (this.#pending.body !== body) this.#pending = { body, key: newKey() };
		this.#busy(true);
		try {
			await this.#send(request, this.#pending.key);
			this.#pending = { body: "", key: "" };
		} catch (fault) {
			this.#refused(fault);
		} finally {
			this.#busy(false);
		}
	}

	#refused(fault) {
		if (fault.details?.length) this.#show(fault.details, errorWords(fault.code));
		else say(by("said"), fault.code === undefined ? "There is no answer. Develop sends it once more; it is never drawn twice." : failure(fault));
	}

	// Each fault at its field; what has none is said above.
	#show(faults, words) {
		const lost = [], named = new Set();
		for (const { field: path, message: told } of faults) {
			const name = path.split(".")[0], box = by("form").querySelector(`[data-field="${CSS.escape(name)}"]`);
			if (!box) { lost.push(` ${fieldName(name)}: ${told}.`); continue; }
			named.add(fieldName(name));
			const message = name === "prompt" && !by("prompt").value.trim() ? "Say what should be in the picture." : told;
			const place = box.querySelector(".fault");
			say(place, place.textContent ? `${place.textContent}; ${message}` : message);
			for (const control of controls(box)) control.setAttribute("aria-invalid", "true");
			if (by("settings").contains(box)) by("settings").open = true;
		}
		say(by("said"), `${words}${lost.join("")}${named.size ? ` Look at: ${[...named].join(", ")}.` : ""}`);
		by("form").querySelector("[aria-invalid]")?.focus();
	}

	#clear(box) {
		for (const place of box.querySelectorAll(".fault")) say(place, "");
		for (const control of controls(box)) control.removeAttribute("aria-invalid");
	}

	#edited(target) {
		const box = target.closest("[data-field]");
		if (box) this.#clear(box);
		if (target.type === "range") box.querySelector("[type=number]").value = target.value;
		this.#changed();
	}

	// Sliders follow their numbers, what has no use is hidden, the draft is kept over a reload.
	#changed() {
		for (const slider of by("fields").querySelectorAll("[type=range]")) {
			slider.value = slider.parentElement.querySelector("[type=number]").value || slider.min;
		}
		const values = this.#values(), useful = { quality: values.output_format !== "png", strength: values.image };
		for (const box of by("fields").children) box.hidden = !(useful[box.dataset.field] ?? true);
		const size = values.width && values.height ? `${values.width} × ${values.height}` : null;
		const parts = [size, values.num_inference_steps && `${values.num_inference_steps} steps`, values.seed && `seed ${values.seed}`];
		say(by("summary"), parts.filter(Boolean).join(", "));
		sessionStorage.setItem(DRAFT, JSON.stringify(values));
	}

	#busy(sending) {
		this.#sending = sending;
		by("send").setAttribute("aria-disabled", String(sending));
		say(by("send"), sending ? "Sending…" : "Develop");
	}
}

const controls = (box) => box.querySelectorAll("textarea, input:not([type=range])");

function field(parameter) {
	const { name, type, least = null, most = null } = parameter, id = `field-${name}`;
	const words = name === "tags" ? "Yours, with commas between" : (name === "seed" || type !== "integer") && parameter.description;
	const hint = words && h("span", { class: "hint", id: `${id}-hint` }, words);
	const described = [hint && `${id}-hint`, `${id}-fault`].filter(Boolean).join(" ");
	const fault = h("p", { class: "fault", id: `${id}-fault` });
	if (parameter.one_of) {
		const choices = parameter.one_of.map((choice) => h("label", {},
			h("input", { type: "radio", name, value: choice, "aria-describedby": `${id}-fault` }), h("span", {}, choice)));
		return h("fieldset", { class: "field", "data-field": name }, h("legend", {}, fieldName(name)), h("div", { class: "choices" }, choices), fault);
	}
	const title = h("label", { for: id }, fieldName(name));
	if (name === "seed" || least === null || most === null) {
		const input = h("input", {
			id, name, type: "text", autocomplete: "off", spellcheck: name !== "seed" && "true",
			inputmode: name === "seed" && "numeric", "aria-describedby": described,
		});
		return h("div", { class: "field", "data-field": name }, title, input, hint, fault);
	}
	const range = { min: least, max: most, step: parameter.multiple_of ?? (type === "number" ? 0.1 : 1) };
	return h("div", { class: "field number", "data-field": name }, title,
		h("input", { id, name, type: "number", ...range, "aria-describedby": described }),
		h("input", { type: "range", ...range, tabindex: "-1", "aria-hidden": "true" }), hint, fault);
}
