// View 2: the sync operations, what each destination made of them, and what was sent.

import { h } from "./dom.js";
import { duration, number, when } from "./format.js";
import { download, get } from "./http.js";
import { attempt, badge, button, choice, field, nothing, pager, runLink, table } from "./parts.js";
import { t } from "./words.js";

const STATES = { done: "good", failed: "bad", open: "warn", superseded: "dim" };
const KINDS = ["run", "backfill", "replay", "recover", "repair"];
const COUNTS = ["read", "delivered", "unchanged", "overtaken", "not_routed", "dead"];

export const refresh = (parameters) => (parameters.before ? 0 : 15);

export async function content(parameters, { go, signal }) {
  const { pipeline, destination, kind, state, sync_id, before } = parameters;
  const told = await get("operations", { pipeline, destination, kind, state, sync_id, before, limit: 25 }, signal);
  const turn = (changes) => go("operations", { ...parameters, before: null, ...changes });
  return [
    h("h2", {}, t("Operations")),
    h(
      "form",
      { class: "filters", onsubmit: (event) => event.preventDefault() },
      choice(t("Kind"), "kind", kind, options(KINDS), (value) => turn({ kind: value })),
      choice(t("State"), "state", state, options(Object.keys(STATES)), (value) => turn({ state: value })),
      field(t("Destination"), "destination", destination ?? "", (value) => turn({ destination: value })),
      field("sync id", "sync_id", sync_id ?? "", (value) => turn({ sync_id: value })),
    ),
    told.operations.length === 0 && nothing(t("There is no such operation.")),
    told.operations.map((operation) => one(operation)),
    pager(told.next, !before, (place) => turn({ before: place })),
  ];
}

const options = (values) => [["", t("all")], ...values.map((value) => [value, t(value)])];

function one(operation) {
  const ended = operation.committed_at ?? operation.superseded_at;
  const took = ended ? (new Date(ended) - new Date(operation.started_at)) / 1000 : null;
  return h(
    "section",
    { class: "panel operation", id: `op-${operation.sync_id}` },
    h(
      "header",
      {},
      h("h3", {}, when(operation.started_at), ` · ${operation.pipeline} · ${t(operation.kind)}`),
      badge(STATES[operation.state], t(operation.state)),
      runLink(operation.dag_id, operation.run_id),
    ),
    h(
      "p",
      { class: "dim" },
      t("Window"), " ", operation.lower ? when(operation.lower) : t("the beginning"), " – ", when(operation.upper),
      ` · ${t("{n} rows", { n: number(operation.rows) })} · ${t("took")} ${duration(took)} · `,
      h("code", {}, operation.sync_id),
    ),
    operation.loads.length > 0 && loads(operation),
  );
}

function loads(operation) {
  const names = {
    read: t("read"), delivered: t("delivered"), unchanged: t("unchanged"), overtaken: t("overtaken"),
    not_routed: t("not routed"), dead: t("dead"),
  };
  const columns = [
    [t("Destination"), (load) => h("strong", {}, load.destination)],
    [t("Result"), (load) => result(load)],
    ...COUNTS.map((name) => [names[name], (load) => number(load.counts[name])]),
    [t("Duration"), (load) => duration(load.end_at ? (new Date(load.end_at) - new Date(load.start_at)) / 1000 : null)],
    [t("What was sent"), (load) => log(operation, load)],
  ];
  return table(t("Loads"), columns, operation.loads);
}

function result(load) {
  if (load.result === null) return badge("warn", t("open"));
  if (load.result === 1) return badge("good", t("well"));
  return [badge("bad", t(load.failure ?? "failed")), " ", h("span", { class: "small" }, load.error)];
}

function log(operation, load) {
  if (!operation.may_edit) return "–";
  const name = `${operation.sync_id}-${load.destination}.json`;
  const path = `operations/${operation.sync_id}/log`;
  return button(t("JSON"), () => attempt(() => download(path, name, { destination: load.destination })), {
    "aria-label": t("What was sent to {name}, as JSON", { name: load.destination }),
  });
}
