// Calls to the API: where it is, the key, ETags, errors in one shape, and whether the line holds.

// This file is at <root>/page/api.js, whatever stage or prefix the API is served under.
const ROOT = new URL("../", import.meta.url);
const PATIENCE = 20_000; // milliseconds until no answer counts as none
const KEY = "darkroom-key";
const LONG_SEED = /("seed"\s*:\s*)(\d{16,})/g;

// The API said no: `code`, `message` and `details` are its own words.
export class Refused extends Error {
	constructor(status, error, again) {
		super(error.message);
		Object.assign(this, { status, code: error.code, details: error.details ?? [], again });
	}
}

// No answer, or none of ours. Nobody knows whether the call was carried out.
export class Unreachable extends Error {}

// Seeds go up to 2^63 and JavaScript's numbers to 2^53: long ones stay text. A quote within a JSON string is escaped,
// so a prompt that talks of "seed" is not met.
const read = (text) => JSON.parse(text.replace(LONG_SEED, '$1"$2"'));

// The request as JSON, with its seed as the digits that were typed.
export function write(request) {
	const { seed, ...rest } = request;
	const text = JSON.stringify(rest);
	if (!/^-?\d+$/.test(seed ?? "")) return seed === undefined ? text : JSON.stringify(request);
	return `${text.slice(0, -1)}${text === "{}" ? "" : ","}"seed":${BigInt(seed)}}`;
}

// What the line is doing. "change" tells that `lost` (null, or when it is tried again) is another.
export class Line extends EventTarget {
	lost = null;
	#failures = 0;

	broke() {
		this.#failures += 1;
		const wait = Math.min(30_000, 1000 * 2 ** (this.#failures - 1)) * (0.75 + Math.random() / 2);
		this.#turn(Date.now() + wait);
	}

	works() {
		this.#failures = 0;
		if (this.lost !== null) this.#turn(null);
	}

	tryNow() {
		if (this.lost !== null) this.#turn(Date.now());
	}

	#turn(lost) {
		this.lost = lost;
		this.dispatchEvent(new Event("change"));
	}
}

export class Api {
	line = new Line();
	#askKey;

	// `askKey(wrong)` resolves to a key, or to null where nobody gives one.
	constructor(askKey) {
		this.#askKey = askKey;
	}

	// {data, etag, again}: 304 has no data, `again` is Retry-After in seconds or null.
	async call(method, path, { body, headers = {}, etag } = {}) {
		const key = sessionStorage.getItem(KEY);
		const answer = await this.#fetch(method, path, {
			...headers,
			...(key && { "X-API-Key": key }),
			...(etag && { "If-None-Match": etag }),
			...(body !== undefined && { "Content-Type": "application/json" }),
		}, body);
		if (answer.status === 401 || answer.status === 403) {
			const given = await this.#askKey(key !== null);
			if (given !== null) {
				sessionStorage.setItem(KEY, given);
				return this.call(method, path, { body, headers, etag });
			}
		}
		return this.#shape(answer);
	}

	async #fetch(method, path, headers, body) {
		try {
			const answer = await fetch(new URL(path, ROOT), {
				method, headers, body, cache: "no-store", signal: AbortSignal.timeout(PATIENCE),
			});
			const text = await answer.text();
			this.line.works();
			return { status: answer.status, text, headers: answer.headers };
		} catch {
			this.line.broke();
			throw new Unreachable();
		}
	}

	#shape({ status, text, headers }) {
		const again = Number(headers.get("Retry-After")) || null, etag = headers.get("ETag");
		if (status === 304) return { data: null, etag, again };
		let data = null;
		try {
			data = read(text);
		} catch {
			// A gateway's own page: it says no more than its status.
		}
		if (status >= 400 || data === null) {
			const plain = { code: null, message: data?.message ?? `the server answered ${status}` };
			throw new Refused(status, data?.error ?? plain, again);
		}
		return { data, etag, again };
	}
}

// A name that no other submission has; randomUUID is missing on plain HTTP from another machine.
export const newKey = () => crypto.randomUUID?.() ?? `page-${Date.now()}-${Math.random().toString(36).slice(2)}`;

// One question at a time, however many calls were refused meanwhile.
export function once(ask) {
	let asking = null;
	return (wrong) => (asking ??= ask(wrong).finally(() => { asking = null; }));
}
