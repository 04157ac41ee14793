// Elements without HTML: what comes from outside is text or an attribute, never markup.

const SVG = "http://www.w3.org/2000/svg";

export const by = (id) => document.getElementById(id);

const some = (children) => children.flat(2).filter((one) => one !== null && one !== undefined && one !== false);

// on… is a listener, true an empty attribute, null and false none; such children are left out.
function fill(element, attributes, children) {
	for (const [name, value] of Object.entries(attributes)) {
		if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
		else if (value !== null && value !== undefined && value !== false) element.setAttribute(name, value === true ? "" : value);
	}
	element.append(...some(children));
	return element;
}

export const h = (tag, attributes = {}, ...children) => fill(document.createElement(tag), attributes, children);

export const svg = (tag, attributes = {}, ...children) => fill(document.createElementNS(SVG, tag), attributes, children);

export const put = (element, ...children) => element.replaceChildren(...some(children));

// Writes what differs: a screen reader would read it again, a selection be lost.
export function say(element, text) {
	if (element.textContent !== text) element.textContent = text;
}
