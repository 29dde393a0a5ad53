// View 4: one lead over all CRMs. What was typed is sent, and kept nowhere: not even in the address.

import { fill, h } from "./dom.js";
import { when } from "./format.js";
import { get, post } from "./http.js";
import { letter } from "./letter.js";
import { attempt, badge, button, nothing, outside, runLink, table } from "./parts.js";
import { t } from "./words.js";

const KINDS = {
  missing: "missing",
  doubled: "doubled",
  stale: "stale",
  wrongly_alive: "alive although deleted",
  wrongly_deleted: "deleted in the CRM",
  changed_by_hand: "changed by hand",
  hard_deleted: "gone from the lead store",
};

export async function content(parameters, { go, signal }) {
  const { pipeline, external_id } = parameters;
  const told = external_id ? await get("leads", { pipeline, external_id }, signal) : null;
  return [h("h2", {}, t("Lead")), search(go), told && shown(told)];
}

function search(go) {
  const found = h("div", { id: "found" });
  const onsubmit = async (event) => {
    event.preventDefault();
    const query = new FormData(event.target).get("query").trim();
    if (!query) return;
    fill(found, h("p", { class: "empty" }, t("Searching…")));
    const told = await attempt(() => post("leads/search", { query }));
    if (told === null) return fill(found);
    if (told.leads.length === 1) return go("lead", told.leads[0]);
    return fill(found, results(told));
  };
  return [
    h(
      "form",
      { class: "filters", role: "search", onsubmit },
      h("label", {}, t("External id, uid, phone or e-mail"), h("input", { name: "query", required: true, maxlength: 300, autocomplete: "off", spellcheck: "false" })),
      h("button", { class: "primary" }, t("Search")),
    ),
    found,
  ];
}

function results(told) {
  const href = (lead) => `#lead?${new URLSearchParams({ pipeline: lead.pipeline, external_id: lead.external_id })}`;
  return [
    told.leads.length === 0 && nothing(t("No such lead was found.")),
    told.leads.length > 0 &&
      table(t("Leads found"), [
        [t("Lead"), (lead) => h("a", { href: href(lead) }, lead.external_id)],
        [t("Pipeline"), (lead) => lead.pipeline],
        [t("Found by"), (lead) => t(lead.by)],
      ], told.leads),
    told.more && nothing(t("There are more than are shown here.")),
    told.problems.map((problem) => h("p", { class: "trouble" }, `${problem.pipeline}: ${explained(problem)}`)),
  ];
}

function explained(problem) {
  if (problem.problem === "slow") {
    return t("searching {columns} took too long; an index on it helps", { columns: problem.columns.join(", ") });
  }
  if (problem.problem === "no_lookup") return t("the pipeline file names no columns to search (`lookup`)");
  return problem.detail;
}

function shown(told) {
  return [
    h("h3", { class: "lead" }, told.external_id, " ", badge("dim", told.pipeline)),
    !told.known && nothing(t("Nothing is known of this lead.")),
    h("p", {}, store(told.source)),
    table(t("CRMs"), [
      [t("Destination"), (each) => h("strong", {}, each.destination)],
      [t("State"), (each) => state(each)],
      [t("CRM record"), (each) => (each.ledger?.crm_id ? record(each.ledger) : "–")],
      [t("Last operation"), (each) => operation(each.ledger?.claimed_by)],
    ], told.destinations),
    told.letters.length > 0 && [
      h("h3", {}, t("Dead letters")),
      told.letters.map((each) => letter(each, { mayEdit: told.may_edit, withDestination: true })),
    ],
    told.findings.length > 0 && findings(told.findings),
    told.known && history(told),
  ];
}

function store(source) {
  if (!source.reachable) return h("span", { class: "bad" }, source.problem);
  if (!source.present) return t("It is not in the lead store.");
  return t(source.deleted ? "Deleted in the lead store, as of {time}." : "In the lead store, as of {time}.", { time: source.watermark });
}

function state(each) {
  if (each.retries.length > 0) return badge("warn", t("waits for another try"));
  if (!each.ledger) return each.routed === false ? badge("dim", t("not routed")) : badge("dim", t("never sent"));
  return each.ledger.delivered ? badge("good", t("delivered")) : badge("warn", t("in doubt or refused"));
}

const record = ({ crm_id, url }) => (url ? outside(crm_id, url, { aside: true }) : h("code", {}, crm_id));

/** What reconciliations found; a finding tells what was so then. */
function findings(found) {
  return [
    h("h3", {}, t("Findings of reconciliations")),
    table(t("Findings of reconciliations"), [
      [t("Destination"), (each) => h("strong", {}, each.destination)],
      [t("Finding"), (each) => badge(each.repaired_at ? "dim" : "bad", t(KINDS[each.kind]))],
      [t("Fields"), (each) => each.fields.join(", ") || "–"],
      [t("CRM record"), (each) => (each.records.length > 0 ? each.records.map((one) => [record(one), " "]) : "–")],
      [t("Found"), (each) => when(each.found_at)],
      [t("Mended"), (each) => mended(each)],
    ], found),
  ];
}

function mended(each) {
  if (!each.repair_id) return t("no");
  const text = each.repaired_at ? when(each.repaired_at) : t("tried");
  return h("a", { href: `#operations?sync_id=${each.repair_id}` }, text);
}

function operation(by) {
  if (!by) return "–";
  return [h("a", { href: `#operations?sync_id=${by.sync_id}` }, t(by.kind)), " ", when(by.at), " ", runLink(by.dag_id, by.run_id)];
}

/** The changes that were sent; sealed records are looked through as far back as the person wants. */
function history(told) {
  const list = h("ol", { class: "timeline" });
  const foot = h("div", {});
  const more = async (before) => {
    fill(foot, h("p", { class: "empty" }, t("Searching…")));
    const found = await attempt(() => get("leads/history", { pipeline: told.pipeline, external_id: told.external_id, before }));
    if (!found) return fill(foot, button(t("Try again"), () => more(before)));
    list.append(...found.changes.map(change));
    return fill(
      foot,
      found.unreadable > 0 && h("p", { class: "bad" }, t("Some records are sealed with a key that is not known any more.")),
      found.next
        ? [h("p", { class: "dim" }, t("Searched back to"), " ", when(found.searched_to), " "), button(t("Search further back"), () => more(found.next))]
        : h("p", { class: "dim" }, t("This is all that the operation log holds.")),
    );
  };
  more(null);
  return [h("h3", {}, t("What was sent")), list, foot];
}

function change(each) {
  return h(
    "li",
    {},
    when(each.at),
    " ",
    h("strong", {}, each.destination),
    " ",
    badge(each.change === "deleted" ? "bad" : "good", t(each.change)),
    each.changed && each.changed.length > 0 && ` ${each.changed.join(", ")}`,
    " ",
    h("a", { href: `#operations?sync_id=${each.sync_id}` }, t(each.kind)),
    " ",
    runLink(each.dag_id, each.run_id),
  );
}
