// One dead letter: what the CRM said, what was to be sent, and who may look at it.

import { h } from "./dom.js";
import { number, when } from "./format.js";
import { post } from "./http.js";
import { attempt, badge, button } from "./parts.js";
import { t } from "./words.js";

/** As a panel. `tick` keeps which ones are chosen, null where nothing can be; values are shown on request. */
export function letter(each, { tick = null, mayEdit = false, withDestination = false } = {}) {
  const id = `letter-${each.id}`;
  return h("section", { class: "panel letter", id }, parts(each, { tick, mayEdit, withDestination }));
}

function parts(each, options) {
  const { tick, mayEdit, withDestination } = options;
  const reveal = async () => {
    const told = await attempt(() => post(`dead-letters/${each.id}/reveal`));
    if (told) document.getElementById(`letter-${each.id}`).replaceChildren(...parts(told, options));
  };
  return [
    h(
      "header",
      {},
      tick &&
        h("input", {
          type: "checkbox",
          class: "tick",
          checked: tick.has(each),
          "aria-label": t("Choose {lead}", { lead: each.external_id }),
          onchange: (event) => tick.set(each, event.target.checked),
        }),
      h("h3", {}, h("a", { href: leadHref(each) }, each.external_id)),
      withDestination && badge("dim", each.destination),
      h("span", { class: "dim" }, t("attempts: {n}", { n: number(each.attempts) }), " · ", when(each.updated_at)),
    ),
    h("p", {}, badge("bad", t(each.reason)), " ", [each.code, each.field].filter(Boolean).join(" · ")),
    each.message !== null && h("p", { class: "message" }, each.message),
    each.resolution && h("p", { class: "good" }, when(each.resolved_at), ` ${each.resolution}`),
    !each.readable && h("p", { class: "bad" }, t("Sealed with a key that is not known any more.")),
    h(
      "details",
      { open: !each.masked },
      h("summary", {}, each.delete ? t("A delete") : t("{n} fields", { n: Object.keys(each.fields).length })),
      h(
        "dl",
        { class: "fields" },
        Object.entries(each.fields).map(([name, value]) =>
          h("div", {}, h("dt", {}, name), h("dd", {}, value === null ? h("em", {}, t("empty")) : text(value))),
        ),
      ),
      each.masked && mayEdit && each.readable && button(t("Show the values (this is logged)"), reveal),
    ),
  ].filter(Boolean);
}

const text = (value) => (typeof value === "string" ? value || h("em", {}, t("empty")) : JSON.stringify(value));

const leadHref = (each) => `#lead?${new URLSearchParams({ pipeline: each.pipeline, external_id: each.external_id })}`;
