// What several views show: tables, filters, dialogs, links out of the frame.

import { fill, h } from "./dom.js";
import { Failed, leave, runAddress } from "./http.js";
import { t } from "./words.js";

/** A table whose rows become cards where it is narrow. `columns`: [title, cell of a row]. */
export function table(caption, columns, rows, attributes = () => ({})) {
  return h(
    "div",
    { class: "scroll" },
    h(
      "table",
      {},
      h("caption", {}, caption),
      h("thead", {}, h("tr", {}, columns.map(([title]) => h("th", { scope: "col" }, title)))),
      h(
        "tbody",
        {},
        rows.map((row) =>
          h("tr", attributes(row), columns.map(([title, cell]) => h("td", { "data-label": title }, h("div", {}, cell(row))))),
        ),
      ),
    ),
  );
}

export const nothing = (text) => h("p", { class: "empty" }, text);

/** A button; `primary` is the one to press. */
export const button = (text, onclick, attributes = {}) => h("button", { type: "button", onclick, ...attributes }, text);

/** A link out of the frame; the address is also there for the right mouse button. */
export function outside(text, href, { aside = false } = {}) {
  const onclick = (event) => {
    event.preventDefault();
    leave(href, { aside });
  };
  return h("a", { href, onclick, class: "out", rel: "noopener noreferrer" }, text);
}

export const runLink = (dag, run) => outside(t("Airflow run"), runAddress(dag, run));

export const badge = (kind, text) => h("span", { class: `badge ${kind}` }, text);

/** A choice of values with a label: [value, text]. */
export function choice(label, name, value, options, onchange) {
  return h(
    "label",
    {},
    label,
    h(
      "select",
      { name, onchange: (event) => onchange(event.target.value) },
      options.map(([option, text]) => h("option", { value: option, selected: option === (value ?? "") }, text)),
    ),
  );
}

export function field(label, name, value, onchange) {
  return h("label", {}, label, h("input", { name, value, onchange: (event) => onchange(event.target.value.trim()) }));
}

/** Buttons from page to page; `turn` gets the place where a page begins, null for the first. */
export function pager(next, first, turn) {
  return h(
    "div",
    { class: "pager" },
    button(t("Newest"), () => turn(null), { disabled: first }),
    button(t("Older"), () => turn(next), { disabled: next === null }),
  );
}

/** Says briefly what became of an action; read aloud. */
export function say(text, bad = false) {
  const line = document.getElementById("said");
  line.className = bad ? "bad" : "good";
  fill(line, text);
  clearTimeout(say.timer);
  say.timer = setTimeout(() => fill(line), 8000);
}

/** Runs what a person asked for and says why it failed. */
export async function attempt(work) {
  try {
    return await work();
  } catch (error) {
    if (!(error instanceof Failed)) throw error;
    say(error.status === 0 ? t("The server can't be reached.") : error.message, true);
    return null;
  }
}

/** Asks before something is done; with `why` for a text as well. Gives the text (or true), null when it was called off. */
export function confirmed({ title, text, action, why = null }) {
  const dialog = document.getElementById("dialog");
  return new Promise((resolve) => {
    const input = why ? h("textarea", { name: "why", required: true, minlength: 3, maxlength: 500, rows: 3 }) : null;
    const form = h(
      "form",
      {
        method: "dialog",
        onsubmit: () => {
          dialog.returnValue = "yes";
        },
      },
      h("h2", { id: "dialog-title" }, title),
      h("p", {}, text),
      input && h("label", {}, why, input),
      h(
        "div",
        { class: "actions" },
        h("button", { type: "button", onclick: () => dialog.close("no") }, t("Cancel")),
        h("button", { class: "primary", value: "yes" }, action),
      ),
    );
    dialog.replaceChildren(form);
    dialog.returnValue = "no";
    dialog.onclose = () => {
      const answer = dialog.returnValue === "yes" ? (input ? input.value.trim() : true) : null;
      dialog.replaceChildren();
      resolve(answer);
    };
    dialog.showModal();
    (input ?? form.querySelector(".primary")).focus();
  });
}
