"""Alerts: one message when something starts, one when it ends, to every address; never one per lead or task.

A check looks at what is so now and compares it with what was known, instead of taking Airflow's callbacks: those speak
once per task and try, fire twice or not at all when a worker dies, and know nothing of what never ran. State can be
looked at again: a check that died changes nothing about what is to be told.

What starts and ends is kept first, in one transaction with the recovery log, then told. Who has been told is kept per
address, so a service that is down gets its message at a later check and the others get theirs once. A check that dies
between sending and keeping that sends again: at least once. What is over before an address heard of it is one message.

A number has to be clearly within its limit, and anything well for `calm_minutes`, before its end is told.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, TypeVar

import psycopg
import structlog

from leadsync import conditions, figures
from leadsync.conditions import Condition, Seen, SeenRedis, Stands
from leadsync.config import Pipeline
from leadsync.errors import LeadsyncError, Unavailable
from leadsync.figures import SourceState
from leadsync.messaging import Address
from leadsync.metering import Reading
from leadsync.redis_state import RedisState
from leadsync.state import alerts, fence, recovery_log, schema
from leadsync.state.alerts import Alert, Name

log = structlog.get_logger(__name__)

T = TypeVar("T")

# A service that does not answer is asked again, so often and after so many seconds: a restart is no alert.
TRIES = 3
PAUSE_SECONDS = 3.0
LONGEST = 25  # alerts in one message; the page has all
UNWATCHED = "it is not watched any more"

# What each is called, and what a person can do.
KINDS: Mapping[str, tuple[str, str]] = {
    "behind": ("behind", "Its card on the overview says why."),
    "parked": ("parked", "It takes part again by itself once it is well; the recovery log says what failed."),
    "dead_letters": ("over its limit of dead letters", "Mend the cause, then replay their group."),
    "quota": ("short of quota", "Once it is spent nothing is sent until it is filled again: put backfills off."),
    "held_back": ("held back", "End the transaction, or list its role in `ignore_roles` if it surely never writes."),
    "lead_store": ("without its lead store", "Look at its server and its connection."),
    "redis": ("away", "Look at its server and its connection."),
    "redis_memory": ("nearly full", "Raise `maxmemory`, or shorten `retention.snapshot_keep_hours`."),
    "redis_unsafe": ("at risk of losing snapshots", "Set `maxmemory-policy noeviction`, and look at its disk."),
}

AskStore = Callable[[Pipeline, Mapping[str, datetime | None]], SourceState]
AskRedis = Callable[[], tuple[RedisState, Mapping[tuple[str, str], Reading]]]


def check(
    state: psycopg.Connection[Any],
    pipelines: Sequence[Pipeline],
    unread: Collection[str],
    ask_store: AskStore,
    ask_redis: AskRedis,
    addresses: Sequence[Address],
    page: str,
) -> dict[str, Any]:
    """Looks at everything once, keeps what has started and ended, and tells every address what it does not know yet.

    `unread` are pipelines whose file can't be read: what is known of them stays. What asks raises LeadsyncError.
    `page` is the address of the page. Returns what has `started`, what `ended` and what is `running`, and how many
    `messages` were sent. Raises Unavailable when an address took no message, after all the others were told.
    """
    schema.check(state)
    with fence.alert_lock(state):
        found = look(state, pipelines, ask_store, ask_redis)
        with state.transaction():
            started, ended = _keep(state, found, [pipeline.name for pipeline in pipelines], unread)
        messages = _tell(state, addresses, page)
        running = [alert.name for alert in alerts.read(state) if alert.ended_at is None]
    named = {"started": started, "ended": ended, "running": running}
    return {
        **{word: [f"{_owner(name)}: {name.kind}" for name in names] for word, names in named.items()},
        "messages": messages,
    }


def look(
    state: psycopg.Connection[Any], pipelines: Sequence[Pipeline], ask_store: AskStore, ask_redis: AskRedis
) -> list[Condition]:
    """Every condition that is watched, as it is now."""
    told, problem = _patiently(ask_redis)
    redis = SeenRedis(None, {}, problem) if told is None else SeenRedis(*told)
    found = list(conditions.of_redis([pipeline.alerts for pipeline in pipelines], redis))
    known = figures.targets(state)
    facts = figures.facts(state, [target.number for target in known])
    for pipeline in pipelines:
        targets = {target.destination: target for target in known if target.pipeline == pipeline.name}
        marks = {each.name: targets[each.name].watermark for each in pipeline.destinations if each.name in targets}
        source, problem = _patiently(partial(ask_store, pipeline, marks))
        found += conditions.of_pipeline(Seen(pipeline, targets, facts, source, problem), redis)
    return found


def _patiently(ask: Callable[[], T]) -> tuple[T | None, str]:
    """The answer, or why there is none."""
    for attempt in range(1, TRIES + 1):
        try:
            return ask(), ""
        except LeadsyncError as error:
            problem = str(error)
        if attempt < TRIES:
            time.sleep(PAUSE_SECONDS)
    return None, problem


def _keep(
    state: psycopg.Connection[Any], found: Sequence[Condition], pipelines: Sequence[str], unread: Collection[str]
) -> tuple[list[Name], list[Name]]:
    """Writes down, also into the recovery log, what starts and what ends, and returns it."""
    running = {alert.name for alert in alerts.read(state) if alert.ended_at is None}
    started, ended = [], []
    for each in found:
        name, well = each.name, each.stands is Stands.WELL
        if name not in running:
            if each.stands is Stands.WRONG:
                alerts.start(state, name, each.text, each.since)
                started.append(name)
                _log(state, name, "alert", each.text, pipelines)
        elif each.stands is not Stands.UNKNOWN:
            alerts.renew(state, name, each.text, well=well)
            if well and alerts.end(state, name, each.text, each.calm):
                ended.append(name)
                _log(state, name, "alert_over", f"no longer {KINDS[name.kind][0]}: {each.text}", pipelines)
    for name in sorted(running - {each.name for each in found}):
        # What all pipelines share may be watched by one that can't be read.
        if name.pipeline in unread or (unread and not name.pipeline):
            continue
        alerts.end(state, name, UNWATCHED, timedelta(0))
        ended.append(name)
        _log(state, name, "alert_over", UNWATCHED, pipelines)
    return started, ended


def _tell(state: psycopg.Connection[Any], addresses: Sequence[Address], page: str) -> int:
    """One message to every address that does not know all yet; how many that were."""
    messages, failed = 0, []
    for address in addresses:
        untold = [alert for alert in alerts.read(state) if alert.untold(address.key)]
        if not untold:
            continue
        title, body = message(untold, address.key, page)
        if address.send(title, body, good=all(alert.ended_at for alert in untold)):
            alerts.told(state, [alert.name for alert in untold], address.key)
            messages += 1
        else:
            failed.append(address.name)
    alerts.forget(state, [address.key for address in addresses])
    if failed:
        raise Unavailable(f"{', '.join(failed)} of connection leadsync_alerts took no message; the next check tries it")
    return messages


def _log(state: psycopg.Connection[Any], name: Name, kind: str, text: str, pipelines: Sequence[str]) -> None:
    """What all pipelines share is a line of each."""
    log.warning(kind, whose=_owner(name), condition=name.kind, reason=text)
    for pipeline in [name.pipeline] if name.pipeline else pipelines:
        recovery_log.append(state, pipeline, kind, text, destination=name.destination or None, condition=name.kind)


def message(untold: Sequence[Alert], address: str, page: str) -> tuple[str, str]:
    """Title and body, in plain text, of what an address has not been told."""
    lines = [_line(alert, address) for alert in untold[:LONGEST]]
    if len(untold) > LONGEST:
        lines.append(f"And {len(untold) - LONGEST} more.")
    over = sum(alert.ended_at is not None for alert in untold)
    if len(untold) == 1:
        name = untold[0].name
        title = f"{_owner(name)} {'no longer ' if over else ''}{KINDS[name.kind][0]}"
    else:
        title = ", ".join(f"{count} {word}" for count, word in ((len(untold) - over, "new"), (over, "over")) if count)
    return f"Leadsync: {title}", "\n\n".join([*lines, f"All of it: {page}"])


def _line(alert: Alert, address: str) -> str:
    owner, (called, remedy) = _owner(alert.name), KINDS[alert.name.kind]
    if alert.ended_at is None:
        whose = f"{owner}: " if alert.name.pipeline else ""  # Redis is named by the text
        return f"{whose}{alert.detail}. Since {_time(alert.started_at)}. {remedy}"
    lasted = conditions.duration((alert.ended_at - alert.started_at).total_seconds())
    span = f"from {_time(alert.started_at)} to {_time(alert.ended_at)} ({lasted})"
    if address in alert.told_start:
        return f"{owner}: no longer {called}: {alert.detail}. It was {span}."
    return f"{owner}: was {called} {span} and is no longer: {alert.detail}."


def _time(moment: datetime) -> str:
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M} UTC"


def _owner(name: Name) -> str:
    if not name.pipeline:
        return "Redis"
    return f"{name.destination} ({name.pipeline})" if name.destination else name.pipeline
