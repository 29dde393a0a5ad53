// Makes and renews elements. Data only ever becomes text or the value of an attribute, never HTML.

const SVG = "http://www.w3.org/2000/svg";
const DRAWN = new Set(["svg", "path", "line", "title"]);

/** An element: h("a", {href, class, onclick}, children…). Children that are null or false are left out. */
export function h(tag, attributes = {}, ...children) {
  const node = DRAWN.has(tag) ? document.createElementNS(SVG, tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (typeof value === "function") node[name] = value;
    else if (value === true) node.setAttribute(name, "");
    else if (value !== null && value !== undefined && value !== false) node.setAttribute(name, String(value));
  }
  node.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

const HANDLERS = ["onclick", "onsubmit", "onchange", "ontoggle"];

/** Turns what is shown into what is to be shown and touches only what differs: no flicker, the focus stays. */
export function renew(shown, wanted) {
  if (shown.nodeType !== wanted.nodeType || shown.nodeName !== wanted.nodeName || shown.id !== wanted.id) {
    shown.replaceWith(wanted);
    return;
  }
  if (shown.nodeType === Node.TEXT_NODE) {
    if (shown.data !== wanted.data) shown.data = wanted.data;
    return;
  }
  for (const { name } of [...shown.attributes]) {
    // Whether it is open, is up to the person.
    if (!wanted.hasAttribute(name) && name !== "open") shown.removeAttribute(name);
  }
  for (const { name, value } of wanted.attributes) {
    if (shown.getAttribute(name) !== value) shown.setAttribute(name, value);
  }
  for (const name of HANDLERS) shown[name] = wanted[name];
  if (shown.type === "checkbox") shown.checked = wanted.checked;
  const before = [...shown.childNodes];
  const after = [...wanted.childNodes];
  after.forEach((child, place) => (before[place] ? renew(before[place], child) : shown.append(child)));
  before.slice(after.length).forEach((child) => child.remove());
}

/** Shows children in a container in place of what it had. */
export function fill(container, ...children) {
  const wanted = container.cloneNode(false);
  wanted.append(...children.flat(Infinity).filter(Boolean));
  renew(container, wanted);
}
