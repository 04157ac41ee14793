// Asks for the API's key when it is refused.

import { by, say } from "./dom.js";

// Resolves to the key, or to null where the question is dismissed.
export function askKey(wrong) {
	const dialog = by("keys"), field = by("key");
	if (wrong) say(by("keys-words"), "The API refused this key. Another one?");
	field.value = "";
	field.toggleAttribute("aria-invalid", false);
	if (!dialog.open) dialog.showModal();
	return new Promise((resolve) => {
		const ended = new AbortController();
		const end = (key) => {
			ended.abort();
			dialog.close();
			resolve(key);
		};
		by("keys-form").addEventListener("submit", (event) => {
			event.preventDefault();
			const key = field.value.trim();
			// Only what a header can carry; another character would throw far from here.
			if (/^[\x21-\x7e]+$/.test(key)) end(key);
			else field.setAttribute("aria-invalid", "true");
		}, { signal: ended.signal });
		dialog.addEventListener("cancel", () => end(null), { signal: ended.signal });
	});
}
