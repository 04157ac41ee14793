// The tasks that the page knows: listed, watched until they end, and changed on request.

import { Refused, Unreachable, write } from "./api.js";
import { ENDED } from "./words.js";

const PAGE = 24; // tasks to a page of the list
const AT_ONCE = 4; // polls under way
const LOOK_EVERY = 15_000; // milliseconds between looks for tasks from elsewhere
const RENEW_AFTER = 20_000; // milliseconds until a picture that still does not show gets another URL

const path = (id) => `results/${encodeURIComponent(id)}`;

// "change" (detail: its id): a task is new or has moved; "listed": the list has been read; "gone" (id).
export class Tasks extends EventTarget {
	#api;
	#entries = new Map(); // id -> {task, etag, due, tries, asking, taken, renewed}
	#cursor = undefined; // of the page after the oldest one: undefined before any, null after the last
	#lookDue = 0;
	#looking = false;
	#timer = 0;
	#others = new BroadcastChannel("darkroom");

	constructor(api) {
		super();
		this.#api = api;
		document.addEventListener("visibilitychange", () => this.#plan());
		api.line.addEventListener("change", () => this.#plan());
		this.#others.addEventListener("message", ({ data }) => this.watch(String(data)));
	}

	get more() { return Boolean(this.#cursor); }
	get(id) { return this.#entries.get(id); }
	all() { return [...this.#entries.values()].map(({ task }) => task).filter(Boolean); }
	start() { this.#plan(); }

	// Asks for the task now, known or not.
	watch(id) {
		const entry = this.#entry(id);
		entry.due = 0;
		this.#plan();
	}

	// The task's id. The same `key` (Idempotency-Key) is the same task, however often it is sent.
	async submit(request, key) {
		return this.#sent("generate", request, write(request), key);
	}

	// The same request, seed included, as a new task.
	async retry(id, key) {
		return this.#sent(`generate/${encodeURIComponent(id)}/retry`, this.get(id)?.task.request ?? null, undefined, key);
	}

	async cancel(id) {
		try {
			await this.#api.call("DELETE", path(id));
		} finally {
			this.#tell(id); // cancelled, or already at its end
		}
	}

	async older() {
		await this.#list(this.#cursor);
	}

	// A picture did not load: its URL may have run out.
	renew(id) {
		const entry = this.get(id);
		if (!entry || Date.now() - entry.renewed < RENEW_AFTER) return;
		Object.assign(entry, { renewed: Date.now(), etag: null, due: 0 });
		this.#plan();
	}

	async #sent(where, request, body, key) {
		const { data } = await this.#api.call("POST", where, { body, headers: { "Idempotency-Key": key } });
		const entry = this.#entry(data.task_id);
		if (!entry.task) {
			const now = new Date().toISOString();
			const task = { task_id: data.task_id, status: data.status, request, prompt: request?.prompt ?? null, created_at: now };
			this.#take(entry, { ...task, sequence: -1, attempt: 0, images: [], attempts: [], error: null, progress: null });
			entry.due = Date.now() + 400;
		}
		this.#tell(data.task_id);
		return data.task_id;
	}

	#tell(id) {
		this.#others.postMessage(id);
		if (this.get(id)?.task?.sequence !== -1) this.watch(id);
		else this.#plan();
	}

	#entry(id) {
		if (!this.#entries.has(id)) {
			this.#entries.set(id, { task: null, etag: null, due: Infinity, tries: 0, asking: false, taken: 0, renewed: 0 });
		}
		return this.#entries.get(id);
	}

	// Answers may overtake each other: an older one never replaces a newer one.
	#take(entry, task) {
		const known = entry.task;
		if (known && (task.sequence < known.sequence || (task.sequence === known.sequence && !entry.renewed))) return;
		Object.assign(entry, { task, taken: Date.now(), renewed: entry.renewed && Date.now() });
		this.dispatchEvent(new CustomEvent("change", { detail: task.task_id }));
	}

	// Sleeps until something is due: nothing while nobody looks; one try while the line is down.
	#plan() {
		clearTimeout(this.#timer);
		if (document.hidden) return;
		const waiting = [...this.#entries.values()].filter((entry) => !entry.asking);
		const due = Math.min(this.#looking ? Infinity : this.#lookDue, ...waiting.map((entry) => entry.due));
		const at = this.#api.line.lost ?? due;
		if (at === Infinity) return;
		this.#timer = setTimeout(() => this.#turn(), Math.max(20, at - Date.now()));
	}

	#turn() {
		const now = Date.now(), lost = this.#api.line.lost !== null;
		const asking = [...this.#entries.values()].filter((entry) => entry.asking).length;
		if (!this.#looking && (lost || this.#lookDue <= now)) this.#look();
		if (!lost) {
			const due = [...this.#entries].filter(([, entry]) => !entry.asking && entry.due <= now);
			for (const [id, entry] of due.slice(0, Math.max(0, AT_ONCE - asking))) this.#ask(id, entry);
		}
		if (asking < AT_ONCE && !this.#looking) this.#plan();
	}

	async #look() {
		this.#looking = true;
		try {
			if (this.#cursor === undefined) await this.#list();
			else {
				const { data } = await this.#api.call("GET", "results?limit=1");
				if (data.results.some(({ task_id: id }) => !this.get(id)?.task)) await this.#list();
			}
			this.#lookDue = Date.now() + LOOK_EVERY;
		} catch (fault) {
			this.#lookDue = Date.now() + 1000 * Math.max(fault.again ?? 0, LOOK_EVERY / 1000);
			this.#report(fault);
		} finally {
			this.#looking = false;
			this.#plan();
		}
	}

	async #list(cursor) {
		const query = cursor ? `&cursor=${encodeURIComponent(cursor)}` : "";
		const { data } = await this.#api.call("GET", `results?limit=${PAGE}${query}`);
		if (cursor || this.#cursor === undefined) this.#cursor = data.cursor;
		for (const task of data.results) {
			const entry = this.#entry(task.task_id);
			this.#take(entry, task);
			if (entry.due === Infinity && !ENDED.has(entry.task.status)) entry.due = 0;
		}
		this.dispatchEvent(new Event("listed"));
		this.#plan();
	}

	async #ask(id, entry) {
		entry.asking = true;
		try {
			const { data, etag, again } = await this.#api.call("GET", path(id), { etag: entry.etag });
			if (data) this.#take(entry, data);
			Object.assign(entry, { etag, tries: 0, renewed: 0 });
			entry.due = ENDED.has(entry.task.status) ? Infinity : Date.now() + 1000 * (again ?? pace(entry.task));
		} catch (fault) {
			this.#postpone(id, entry, fault);
		} finally {
			entry.asking = false;
			this.#plan();
		}
	}

	#postpone(id, entry, fault) {
		if (fault instanceof Unreachable) {
			entry.due = Date.now(); // when the line works again
		} else if (fault instanceof Refused && fault.status === 404) {
			this.#entries.delete(id);
			this.dispatchEvent(new CustomEvent("gone", { detail: id }));
		} else {
			entry.tries += 1;
			entry.due = Date.now() + 1000 * Math.max(fault.again ?? 0, Math.min(30, 2 ** entry.tries));
			this.#report(fault);
		}
	}

	#report(fault) {
		if (!(fault instanceof Unreachable)) this.dispatchEvent(new CustomEvent("refused", { detail: fault }));
	}
}

// Seconds between questions where the server says none: often at first, then seldom.
function pace(task) {
	const age = (Date.now() - Date.parse(task.created_at)) / 1000;
	return Math.min(5, Math.max(0.7, age / 20));
}
