// View 5: everything that a person may have to look at, and who has dealt with it.

import { h } from "./dom.js";
import { when } from "./format.js";
import { get, post } from "./http.js";
import { attempt, badge, button, choice, confirmed, field, nothing, pager, table } from "./parts.js";
import { t } from "./words.js";

const QUIET = ["resolved", "replay", "revealed", "unparked", "acknowledged", "erased"];

export const refresh = (parameters) => (parameters.before ? 0 : 15);

export async function content(parameters, { go, again, signal }) {
  const { kind, destination, acknowledged, before } = parameters;
  const told = await get("recovery-log", { kind, destination, acknowledged, before, limit: 50 }, signal);
  const turn = (changes) => go("recovery", { ...parameters, before: null, ...changes });
  const kinds = [["", t("all")], ...told.kinds.map((name) => [name, t(name)])];
  const states = [["", t("all")], ["false", t("open")], ["true", t("acknowledged")]];
  return [
    h("h2", {}, t("Recovery log")),
    h(
      "form",
      { class: "filters", onsubmit: (event) => event.preventDefault() },
      choice(t("Kind"), "kind", kind, kinds, (value) => turn({ kind: value })),
      choice(t("State"), "acknowledged", acknowledged, states, (value) => turn({ acknowledged: value })),
      field(t("Destination"), "destination", destination ?? "", (value) => turn({ destination: value })),
    ),
    told.lines.length === 0
      ? nothing(t("There are no such lines."))
      : table(t("Lines"), columns(again), told.lines, (line) => ({ id: `line-${line.id}` })),
    pager(told.next, !before, (place) => turn({ before: place })),
  ];
}

function columns(again) {
  return [
    [t("Time"), (line) => when(line.at)],
    [t("Kind"), (line) => badge(QUIET.includes(line.kind) ? "dim" : "warn", t(line.kind))],
    [t("Destination"), (line) => line.destination ?? "–"],
    [t("Message"), (line) => [h("span", { class: "message" }, line.message), operation(line)]],
    [t("Acknowledged"), (line) => acknowledgement(line, again)],
  ];
}

const operation = (line) =>
  line.sync_id && h("a", { class: "small", href: `#operations?sync_id=${line.sync_id}` }, t("operation"));

function acknowledgement(line, again) {
  const done = line.acknowledged;
  if (done) return h("span", {}, `${done.by}: ${done.note} · `, when(done.at));
  if (line.kind === "acknowledged" || !line.may_edit) return "–";
  return button(t("Acknowledge"), () => acknowledge(line, again), {
    "aria-label": t("Acknowledge line {id}", { id: line.id }),
  });
}

async function acknowledge(line, again) {
  const note = await confirmed({
    title: t("Acknowledge a line"),
    text: line.message,
    why: t("Note (kept with your name)"),
    action: t("Acknowledge"),
  });
  if (note !== null && (await attempt(() => post(`recovery-log/${line.id}/acknowledge`, { note })))) again();
}
