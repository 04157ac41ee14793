// Puts the parts together.

import { Api, newKey, once } from "./api.js";
import { readCard } from "./card.js";
import { by, h, say } from "./dom.js";
import { Form } from "./form.js";
import { askKey } from "./keys.js";
import { Sheet, hash, title } from "./sheet.js";
import { Tasks } from "./tasks.js";
import { View } from "./view.js";
import { ENDED, failure, label } from "./words.js";

const EXAMPLES = ["a red apple on a blue background", "a sailboat on a teal background", "an owl"];
const CARD_EVERY = 30_000; // milliseconds between looks at a model that is not there yet

const api = new Api(once(askKey));
const tasks = new Tasks(api);
const running = new Set(); // ids of tasks whose end is worth a word

const form = new Form(async (request, key) => {
	const id = await tasks.submit(request, key);
	news(`In the queue: ${request.prompt}`);
	// On a narrow screen the sheet is below: show that something has begun.
	by("sheet").querySelector(`[data-id="${CSS.escape(id)}"]`)?.scrollIntoView({ block: "nearest" });
});

const acts = {
	async again(request) {
		const { seed, task_id: _, ...rest } = Object.fromEntries(Object.entries(request).filter(([, value]) => value !== null));
		location.hash = hash(await tasks.submit(rest, newKey()));
	},
	async retry(id) { location.hash = hash(await tasks.retry(id, newKey())); },
	use: (request) => form.use(request),
	cancel: (id) => tasks.cancel(id),
};

async function cancel(id) {
	try {
		await acts.cancel(id);
	} catch (fault) {
		news(failure(fault));
	}
}

const sheet = new Sheet(tasks, api.line, cancel);
const view = new View(tasks, api.line, acts, () => sheet.order());

function news(text) { say(by("news"), text); }

// Endings are told to those who do not see them; not those of long ago.
tasks.addEventListener("change", ({ detail }) => {
	const { task } = tasks.get(detail);
	if (!ENDED.has(task.status)) running.add(detail);
	else if (running.delete(detail)) news(`${label(task.status)}: ${title(task)}`);
});
tasks.addEventListener("refused", ({ detail }) => say(by("count"), failure(detail)));

api.line.addEventListener("change", () => {
	const lost = api.line.lost !== null;
	by("link").hidden = !lost;
	document.documentElement.classList.toggle("lost", lost);
	if (!lost) {
		news("The connection is back.");
		showCard();
	}
	tick();
});
by("link-now").addEventListener("click", () => api.line.tryNow());
addEventListener("online", () => api.line.tryNow());
addEventListener("offline", () => api.line.broke());

function tick() {
	const now = Date.now(), { lost } = api.line;
	if (document.hidden) return;
	sheet.tick(now, lost !== null);
	view.tick(now, lost !== null);
	// Not in the text: a screen reader would count along.
	if (lost !== null) by("link").dataset.left = lost > now ? `Next try in ${Math.ceil((lost - now) / 1000)} s.` : "Trying…";
}
setInterval(tick, 1000);

let looking = 0;
async function showCard() {
	clearTimeout(looking);
	let status = null;
	try {
		const card = await readCard(api);
		form.draw(card);
		status = card?.status;
		by("model").dataset.status = status ?? "unknown";
		say(by("model"), card ? `${card.id ?? "model"}${card.pipeline ? `, ${card.pipeline}` : ""}` : "No model is known yet");
		by("model").title = card?.reason ?? "";
	} catch (fault) {
		if (fault.code !== undefined) say(by("model"), failure(fault));
	}
	if (status !== "available") looking = setTimeout(showCard, CARD_EVERY);
}

by("examples").append(...EXAMPLES.map((text) => h("button", { type: "button", class: "plain", onclick: () => form.use({ prompt: text }) }, text)));
by("older").addEventListener("click", () => tasks.older().catch(() => {}));

showCard();
tasks.start();
view.route();
