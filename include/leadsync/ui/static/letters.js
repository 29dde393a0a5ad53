// View 3: the leads that CRMs refused: by group, then one by one; replayed, ignored, exported.

import { h } from "./dom.js";
import { count, number, when } from "./format.js";
import { address, airflow, get, post } from "./http.js";
import { letter } from "./letter.js";
import { attempt, badge, button, confirmed, nothing, pager, runLink, say, table } from "./parts.js";
import { t } from "./words.js";

export const refresh = (parameters) => (parameters.destination ? 0 : 15);

// The letters that are ticked in the group that is shown, and the last replays that were started here.
const chosen = { place: "", ids: new Map() };
const replays = [];
const ENDED = ["success", "failed"];

export async function content(parameters, context) {
  const parts = parameters.destination ? await inside(parameters, context) : await groups(parameters, context);
  return [started(), ...parts];
}

async function groups(parameters, { go, again, signal }) {
  const told = await get("dead-letters/groups", {}, signal);
  const seen = new Date().toISOString();
  const shown = told.groups.filter((group) => !parameters.only || group.destination === parameters.only);
  const open = (group, state) => ({ pipeline: group.pipeline, destination: group.destination, group: group.group, state });
  const columns = [
    [t("Destination"), (group) => h("strong", {}, group.destination)],
    [t("Reason"), (group) => h("a", { href: `#letters?${new URLSearchParams(open(group, "open"))}` }, group.group)],
    [t("Leads"), (group) => count(group)],
    [t("First seen"), (group) => when(group.first_seen)],
    [t("Last seen"), (group) => when(group.last_seen)],
    [t("Actions"), (group) => [group.mended && badge("dim", t("marked as mended")), actions(group, seen, again)]],
  ];
  return [
    h("h2", {}, t("Dead letters")),
    parameters.only && h("p", {}, badge("dim", parameters.only), " ", h("a", { href: "#letters" }, t("show all"))),
    shown.length === 0
      ? nothing(t("There are no open dead letters."))
      : table(t("Groups of open dead letters"), columns, shown),
    told.more_groups && nothing(t("There are more groups than are shown here.")),
  ];
}

/** What can be done with a whole group. */
function actions(group, seen, again) {
  const place = { pipeline: group.pipeline, destination: group.destination, group: group.group };
  const label = (text) => ({ "aria-label": `${text}: ${group.destination} ${group.group}` });
  return h(
    "span",
    { class: "actions" },
    group.may_edit && button(t("Replay"), () => replay(place, { group: group.group }, again), label(t("Replay"))),
    group.may_edit && button(t("Ignore"), () => ignore(place, null, seen, again), label(t("Ignore"))),
    h("a", { href: address("dead-letters.csv", place).href, download: true, class: "button", ...label("CSV") }, "CSV"),
  );
}

async function inside(parameters, { go, again, signal }) {
  const { pipeline, destination, group, before } = parameters;
  const state = parameters.state ?? "open";
  const place = { pipeline, destination, group };
  const told = await get("dead-letters", { ...place, state, before, limit: 25 }, signal);
  const seen = new Date().toISOString();
  const key = JSON.stringify([place, state, before]);
  if (chosen.place !== key) {
    chosen.place = key;
    chosen.ids.clear();
  }
  const turn = (changes) => go("letters", { ...parameters, before: null, ...changes });
  return [
    h("p", {}, h("a", { href: "#letters" }, `← ${t("all groups")}`)),
    h("h2", {}, `${destination} · ${group ?? t("all reasons")}`),
    h(
      "div",
      { class: "filters", role: "group", "aria-label": t("State") },
      ["open", "resolved"].map((name) =>
        button(t(name), () => turn({ state: name }), { "aria-pressed": String(name === state) }),
      ),
    ),
    told.may_edit && state === "open" && told.letters.length > 0 && selection(place, told.letters, seen, again),
    told.letters.length === 0 && nothing(t("There are no such dead letters.")),
    told.letters.map((each) => letter(each, { tick: told.may_edit && state === "open" ? tick : null, mayEdit: told.may_edit })),
    pager(told.next, !before, (at) => turn({ before: at })),
  ];
}

const tick = {
  has: (each) => chosen.ids.has(each.id),
  set: (each, on) => (on ? chosen.ids.set(each.id, each) : chosen.ids.delete(each.id)),
};

function selection(place, letters, seen, again) {
  const all = (event) => {
    letters.forEach((each) => tick.set(each, event.target.checked));
    document.querySelectorAll("input.tick").forEach((box) => {
      box.checked = event.target.checked;
    });
  };
  const some = (work) => () => (chosen.ids.size ? work([...chosen.ids.values()]) : say(t("Choose some leads first."), true));
  return h(
    "div",
    { class: "panel selection" },
    h("label", {}, h("input", { type: "checkbox", id: "all", onchange: all }), t("all on this page")),
    button(t("Replay selected"), some((found) => replay(place, { external_ids: ids(found) }, again))),
    button(t("Ignore selected"), some((found) => ignore(place, found.map((each) => each.id), seen, again))),
    place.group && button(t("Replay the whole group"), () => replay(place, { group: place.group }, again)),
    place.group && button(t("Ignore the whole group"), () => ignore(place, null, seen, again)),
    h("a", { href: address("dead-letters.csv", place).href, download: true, class: "button" }, "CSV"),
  );
}

const ids = (letters) => letters.filter((each) => !each.nameless).map((each) => each.external_id);

async function replay(place, what, again) {
  const leads = what.external_ids;
  if (leads && leads.length === 0) return say(t("A row without a key can't be replayed: mend it in the lead store."), true);
  const sure = await confirmed({
    title: t("Replay dead letters"),
    text: leads
      ? t("{n} leads are read again from the lead store and sent to {name}.", { n: number(leads.length), name: place.destination })
      : t("All leads of the group “{group}” are read again from the lead store and sent to {name}.", { group: place.group, name: place.destination }),
    action: t("Replay"),
  });
  if (!sure) return undefined;
  const conf = { pipeline: place.pipeline, destinations: [place.destination], ...what };
  const run = await attempt(() => airflow("POST", "dags/leadsync_replay/dagRuns", { logical_date: null, conf }));
  if (!run) return undefined;
  const mine = { run_id: run.dag_run_id, destination: place.destination, state: run.state };
  replays.unshift(mine);
  replays.splice(3);
  chosen.ids.clear();
  say(t("The replay has started."));
  again();
  return follow(mine, again);
}

/** Looks after a replay until it has ended. */
async function follow(mine, again) {
  while (!ENDED.includes(mine.state)) {
    await new Promise((resolve) => setTimeout(resolve, 1500));
    const path = `dags/leadsync_replay/dagRuns/${encodeURIComponent(mine.run_id)}`;
    const run = await airflow("GET", path).catch(() => null);
    if (run) mine.state = run.state;
  }
  say(t("The replay has ended: {state}", { state: t(mine.state) }), mine.state === "failed");
  if (location.hash.startsWith("#letters")) again();
}

function started() {
  return (
    replays.length > 0 &&
    h(
      "ul",
      { class: "panel plain", "aria-label": t("Replays") },
      replays.map((run) =>
        h(
          "li",
          {},
          `${t("Replay")} → ${run.destination} `,
          badge(run.state === "success" ? "good" : run.state === "failed" ? "bad" : "dim", t(run.state)),
          " ",
          runLink("leadsync_replay", run.run_id),
        ),
      ),
    )
  );
}

async function ignore(place, letters, seen, again) {
  const reason = await confirmed({
    title: t("Ignore dead letters"),
    text: letters
      ? t("{n} leads will not be delivered to {name} in this state.", { n: number(letters.length), name: place.destination })
      : t("No lead of the group “{group}” will be delivered to {name} in this state.", { group: place.group, name: place.destination }),
    why: t("Why? (kept with your name; no personal data, please)"),
    action: t("Ignore"),
  });
  if (reason === null) return;
  let total = 0;
  let left = true;
  while (left) {
    const body = { pipeline: place.pipeline, destination: place.destination, seen, reason };
    const done = await attempt(() =>
      post("dead-letters/ignore", letters ? { ...body, ids: letters } : { ...body, group: place.group }),
    );
    if (!done) break;
    total += done.ignored;
    left = done.left;
    say(t("{n} dead letters are ignored.", { n: number(total) }));
  }
  chosen.ids.clear();
  again();
}
