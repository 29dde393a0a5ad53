// View 1: whether every CRM is up to date, at a glance.

import { h } from "./dom.js";
import { bytes, count, duration, number, percent, sparkline, when } from "./format.js";
import { get } from "./http.js";
import { badge, nothing, runLink } from "./parts.js";
import { t } from "./words.js";

export const refresh = () => 5;

const STATES = {
  up_to_date: ["good", "up to date"],
  behind: ["warn", "behind"],
  failing: ["bad", "failing"],
  parked: ["bad", "parked"],
  not_started: ["dim", "not started"],
};

export async function content(parameters, { signal }) {
  const told = await get("overview", {}, signal);
  const cards = told.pipelines.flatMap((pipeline) => pipeline.destinations);
  return [
    summary(cards),
    alerts(told.alerts),
    running(told.running),
    told.pipelines.map((pipeline) => [
      h("h2", {}, pipeline.name),
      facts(pipeline, told.redis),
      h("div", { class: "cards" }, pipeline.destinations.map((card) => destination(pipeline, card))),
    ]),
    told.pipelines.length === 0 && nothing(t("There is no pipeline file yet.")),
  ];
}

function summary(cards) {
  const troubled = cards.filter((card) => card.state !== "up_to_date");
  const good = troubled.length === 0;
  const text = good
    ? t("All {n} CRMs are up to date.", { n: cards.length })
    : t("{n} of {all} CRMs need a look: {names}", {
        n: troubled.length,
        all: cards.length,
        names: troubled.map((card) => `${card.name} (${t(STATES[card.state][1])})`).join(", "),
      });
  return cards.length > 0 && h("p", { class: `summary ${good ? "good" : "warn"}` }, text);
}

/** What people have been told of: it stands until it is over. */
function alerts(found) {
  if (found.length === 0) return null;
  return h(
    "section",
    { class: "panel", "aria-label": t("Alerts") },
    h("h2", {}, t("Alerts")),
    found.map(({ pipeline, destination, text, since }) =>
      h(
        "p",
        { class: "trouble" },
        pipeline !== "" && [h("strong", {}, destination ? `${destination} (${pipeline})` : pipeline), ": "],
        `${text} · ${t("Since")} `,
        when(since),
      ),
    ),
  );
}

function running(runs) {
  if (runs.length === 0) return null;
  return h(
    "section",
    { class: "panel", "aria-label": t("Running") },
    h("h2", {}, t("Running")),
    runs.map((run) =>
      h(
        "div",
        { class: "running" },
        h("strong", {}, `${run.pipeline} · ${t(run.kind)} → ${run.destinations.join(", ")}`),
        badge(run.state === "stopped" ? "warn" : "dim", t(run.state)),
        run.rows !== null &&
          h("progress", {
            value: run.done,
            max: Math.max(run.rows, 1),
            "aria-label": t("{done} of {rows} leads", { done: number(run.done), rows: number(run.rows) }),
          }),
        h(
          "span",
          { class: "dim" },
          run.rows === null
            ? t("reading the window")
            : t("{done} of {rows} leads", { done: number(run.done), rows: number(run.rows) }),
          run.seconds_left !== null && `, ${t("about {time} left", { time: duration(run.seconds_left) })}`,
        ),
        runLink(run.dag_id, run.run_id),
      ),
    ),
  );
}

function facts(pipeline, redis) {
  const { source } = pipeline;
  const held = source.held_back;
  return h(
    "dl",
    { class: "facts" },
    fact(t("Watermark"), when(pipeline.watermark)),
    fact(t("Lag"), duration(pipeline.lag)),
    fact(
      t("Held back by"),
      source.prepared > 0
        ? t("{n} prepared transactions", { n: source.prepared })
        : held
          ? t("{role}, pid {pid}, open for {time}", { role: held.role, pid: held.pid, time: duration(held.seconds) })
          : t("nothing"),
      source.prepared > 0 || (held && held.seconds > 300) ? "bad" : "",
    ),
    fact(t("Source"), `${source.table} · ${reached(source)}`, source.reachable === false ? "bad" : ""),
    fact("Redis", redisText(redis), redis.reachable === false || redisRisk(redis) ? "bad" : ""),
  );
}

const fact = (title, value, kind = "") => h("div", { class: kind }, h("dt", {}, title), h("dd", {}, value));

const reached = (service) =>
  service.reachable === null ? t("being asked") : service.reachable ? t("reachable") : (service.problem ?? "–");

function redisText(redis) {
  if (redis.used_memory === undefined) return reached(redis);
  const parts = [
    redis.max_memory
      ? t("{used} of {all}", { used: bytes(redis.used_memory), all: bytes(redis.max_memory) })
      : bytes(redis.used_memory),
    t("{n} keys", { n: number(redis.keys) }),
    t("{n} snapshots", { n: `${number(redis.snapshots)}${redis.more ? "+" : ""}` }),
    redis.eviction,
    redis.append_only ? t("append-only file") : redis.saves ? t("dumps") : t("keeps nothing on disk"),
  ];
  if (redis.reachable === false) parts.unshift(redis.problem);
  return parts.filter(Boolean).join(" · ");
}

const redisRisk = (redis) =>
  (redis.eviction && redis.eviction !== "noeviction") ||
  (redis.used_memory !== undefined && !redis.append_only && !redis.saves) ||
  (redis.max_memory > 0 && redis.used_memory > 0.9 * redis.max_memory);

function destination(pipeline, card) {
  const [kind, text] = STATES[card.state];
  const id = `card-${pipeline.name}-${card.name}`;
  return h(
    "article",
    { class: `card ${kind}`, "aria-labelledby": id },
    h("header", {}, h("h3", { id }, card.name), h("span", { class: "dim" }, card.adapter), badge(kind, t(text))),
    card.state !== "not_started" && known(pipeline, card),
  );
}

function known(pipeline, card) {
  const label = t("Delivered per minute, last 24 hours");
  return [
    h(
      "p",
      { class: "big" },
      card.behind < 1
        ? t("nothing waits")
        : t(card.behind_is_exact ? "{time} behind" : "at most {time} behind", { time: duration(card.behind) }),
      card.loading && h("span", { class: "dim" }, ` · ${t("loading")}`),
    ),
    card.per_minute && sparkline(card.per_minute, label),
    h("p", { class: "dim caption" }, `${label}: ${t("{n} in all", { n: number(card.delivered) })}`),
    h(
      "dl",
      { class: "queues" },
      fact(t("Main queue"), count(card.queues.main)),
      fact(t("Retry queue"), count(card.queues.retry), card.queues.retry.count ? "warn" : ""),
      fact(
        t("Dead letters"),
        card.queues.dead.count
          ? h("a", { href: `#letters?${new URLSearchParams({ only: card.name })}` }, count(card.queues.dead))
          : "0",
        card.queues.dead.count ? "bad" : "",
      ),
    ),
    h(
      "dl",
      { class: "more" },
      fact(t("Error rate"), `${percent(card.error_rate)} · ${t("{n} of {all} loads failed", { n: number(card.failed_loads), all: number(card.loads) })}`),
      fact(t("Last success"), when(card.last_success)),
      traffic(card.traffic),
      requests(card.requests),
    ),
    card.parked &&
      h("p", { class: "trouble" }, t("Parked since"), " ", when(card.parked.since), ` (${card.parked.because})`,
        card.parked.probe_after && [`, ${t("tried again after")} `, when(card.parked.probe_after)]),
    card.last_failure && h("p", { class: "trouble" }, when(card.last_failure.at), ` ${card.last_failure.error}`),
  ];
}

/** What the loads have counted of late. */
function traffic(told) {
  if (!told) return null;
  const { latency, freshness, quota } = told;
  const last = { n: told.minutes };
  return [
    freshness && fact(t("Freshness, last {n} min", last), quantiles(freshness, duration)),
    fact(
      t("CRM load, last {n} min", last),
      [
        told.per_second < 1
          ? t("{n} requests a minute", { n: number(told.per_second * 60, 1) })
          : t("{n} requests a second", { n: number(told.per_second, 1) }),
        latency && quantiles(latency, (seconds) => t("{n} ms", { n: number(seconds * 1000) })),
        told.throttled > 0 && t("{n} throttled (429)", { n: number(told.throttled) }),
      ]
        .filter(Boolean)
        .join(" · "),
      told.throttled > 0 ? "warn" : "",
    ),
    quota &&
      fact(
        t("Quota left, as the CRM tells"),
        quota.limit === null ? number(quota.left) : t("{used} of {all}", { used: number(quota.left), all: number(quota.limit) }),
        quota.limit !== null && quota.left < 0.1 * quota.limit ? "bad" : "",
      ),
  ];
}

const quantiles = (found, text) => Object.entries(found).map(([name, seconds]) => `${name} ${text(seconds)}`).join(" · ");

function requests(told) {
  if (!told) return null;
  return [
    told.quotas.map((quota) =>
      fact(
        t("Quota left"),
        t("{n} of {all} in {time}", {
          n: number(Math.max(0, quota.allowed - quota.used)),
          all: number(quota.allowed),
          time: duration(quota.seconds),
        }),
        quota.used > 0.9 * quota.allowed ? "bad" : "",
      ),
    ),
    told.paused_until && fact(t("Paused by the CRM until"), when(told.paused_until), "warn"),
    told.spent_until && fact(t("Quota spent until"), when(told.spent_until), "bad"),
  ];
}
