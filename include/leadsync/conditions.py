"""What people want to be told of: every condition of every pipeline and destination, and how it stands now.

Only numbers, times and the names of the pipeline file go into a text, never anything of a lead.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import Enum
from functools import partial

from leadsync import figures
from leadsync.config import Alerts, Pipeline
from leadsync.figures import Facts, SourceState, Standing, Target
from leadsync.metering import Reading
from leadsync.redis_state import RedisState
from leadsync.state.alerts import Name

# A number is clearly within its limit once it is by so much: a fifth. In between nothing starts and nothing ends.
CLEAR = 1.25


class Stands(Enum):
    """How a condition stands. BETWEEN and UNKNOWN start nothing and end nothing."""

    WRONG = "wrong"
    BETWEEN = "between"
    WELL = "well"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Condition:
    """One of them: how it stands, what is so in words, since when it is wrong (None: since now), and for how long it
    has to be well before it has ended."""

    name: Name
    stands: Stands
    text: str
    since: datetime | None
    calm: timedelta


@dataclass(frozen=True, slots=True)
class Seen:
    """What was found of one pipeline: `targets` by destination, `facts` by number, and why the lead store is silent."""

    pipeline: Pipeline
    targets: Mapping[str, Target]
    facts: Mapping[int, Facts]
    source: SourceState | None
    problem: str = ""


@dataclass(frozen=True, slots=True)
class SeenRedis:
    """What Redis told, and the counters in it; why it is silent."""

    state: RedisState | None
    counters: Mapping[tuple[str, str], Reading]
    problem: str = ""


def of_pipeline(seen: Seen, redis: SeenRedis) -> Iterator[Condition]:
    """All that the pipeline file wants to have watched, of destinations that have taken part in a run."""
    wanted, now = seen.pipeline.alerts, datetime.now(UTC)
    own = partial(_condition, seen.pipeline.name, calm=timedelta(minutes=wanted.calm_minutes))
    if wanted.unreachable:
        yield own("", "lead_store", *_answers("the lead store", seen.problem, "nothing new is read"))
    if wanted.held_back_minutes is not None:
        yield own("", "held_back", *_held_back(seen.source, wanted.held_back_minutes * 60, now))
    for target in seen.pipeline.destinations:
        known = seen.targets.get(target.name)
        if known is None:
            continue
        facts = seen.facts[known.number]
        standing = figures.standing(known, facts, seen.source, now)
        if wanted.parked:
            yield own(target.name, "parked", *_parked(known, standing))
        if wanted.behind_minutes is not None:
            yield own(target.name, "behind", *_behind(known, standing, wanted.behind_minutes * 60, now))
        if wanted.dead_letters is not None:
            stands = _above(facts.dead, wanted.dead_letters)
            yield own(target.name, "dead_letters", stands, _open(facts.dead))
        if wanted.quota_left is not None:
            told = redis.state.requests.get(target.conn_id) if redis.state else None
            quotas = [(quota.allowed - quota.used, quota.allowed) for quota in told.quotas if quota.seconds >= 3600] \
                if told else []  # fmt: skip
            reading = redis.counters.get((seen.pipeline.name, target.name))
            if reading and reading.quota and reading.quota.limit:
                quotas.append((reading.quota.left, reading.quota.limit))
            yield own(target.name, "quota", *_quota(quotas, wanted.quota_left))


def of_redis(pipelines: Sequence[Alerts], seen: SeenRedis) -> Iterator[Condition]:
    """All that the pipelines want to have watched of Redis, which they share."""
    calm = timedelta(minutes=max((wanted.calm_minutes for wanted in pipelines), default=0))
    own = partial(_condition, "", "", calm=calm)
    told = seen.state
    if any(wanted.unreachable for wanted in pipelines):
        yield own("redis", *_answers("Redis", seen.problem, "nothing is sent without it"))
    limits = [wanted.redis_memory for wanted in pipelines if wanted.redis_memory is not None]
    if limits:
        share = told.used_memory / told.max_memory if told and told.max_memory else 0.0
        stands = Stands.UNKNOWN if told is None else _above(share, min(limits))
        yield own("redis_memory", stands, f"Redis uses {share:.0%} of its memory")
    if any(wanted.redis_unsafe for wanted in pipelines):
        risks = []
        if told and told.eviction not in (None, "noeviction"):
            risks.append(f"evicts keys when it is full (`maxmemory-policy {told.eviction}`)")
        if told and not told.writes:
            risks.append("could not write to its disk")
        stands = Stands.UNKNOWN if told is None else Stands.WRONG if risks else Stands.WELL
        text = f"Redis may lose snapshots: it {' and '.join(risks)}" if risks else "Redis keeps what it is given"
        yield own("redis_unsafe", stands, text)


def _condition(
    pipeline: str,
    destination: str,
    kind: str,
    stands: Stands,
    text: str = "",
    since: datetime | None = None,
    *,
    calm: timedelta,
) -> Condition:
    return Condition(Name(pipeline, destination, kind), stands, text, since, calm)


def _above(value: float, limit: float) -> Stands:
    """Wrong from the limit on, well below four fifths of it."""
    if value >= limit:
        return Stands.WRONG
    return Stands.WELL if value * CLEAR < limit else Stands.BETWEEN


def _answers(service: str, problem: str, effect: str) -> tuple[Stands, str]:
    if problem:
        return Stands.WRONG, f"{service} does not answer ({problem}); {effect}"
    return Stands.WELL, f"{service} answers"


def _held_back(source: SourceState | None, limit: float, now: datetime) -> tuple[Stands, str, datetime | None]:
    if source is None:
        return Stands.UNKNOWN, "", None
    bound = source.bound
    held = bound.held_back if bound.pid else 0.0
    if bound.prepared and bound.prepared_seconds >= held:
        seconds = bound.prepared_seconds
        text = f"prepared transactions ({bound.prepared}) in the lead store stop the watermark"
    elif bound.pid:
        seconds = held
        text = f"a transaction of role {bound.role} (pid {bound.pid}) in the lead store holds the watermark back"
    else:
        return Stands.WELL, "nothing holds the watermark back", None
    since = now - timedelta(seconds=seconds)
    return _above(seconds, limit), f"{text}; the oldest has been open for {duration(seconds)}", since


def _parked(known: Target, standing: Standing) -> tuple[Stands, str, datetime | None]:
    waiting = "" if standing.waiting is None else f"; {_waiting(standing.waiting)}"
    if known.parked_at is None:
        return Stands.WELL, f"it takes part in runs{waiting}", None
    return Stands.WRONG, f"parked, for it keeps failing ({known.parked_because}){waiting}", known.parked_at


def _behind(known: Target, standing: Standing, limit: float, now: datetime) -> tuple[Stands, str, datetime | None]:
    if not standing.exact:
        return Stands.UNKNOWN, "", None  # the age of the watermark says nothing when nobody changes anything
    stands = _above(standing.behind, limit)
    if known.parked_at is not None and stands is Stands.WRONG:
        stands = Stands.BETWEEN  # people know that it is parked, and what waits
    text = f"{duration(standing.behind)} behind; {_waiting(standing.waiting or 0)}"
    return stands, text, now - timedelta(seconds=standing.behind)


def _quota(quotas: Sequence[tuple[int, int]], limit: float) -> tuple[Stands, str, datetime | None]:
    """Of what is left, of how much. The scarcest counts."""
    if not quotas:
        return Stands.UNKNOWN, "", None
    left, allowed = min(quotas, key=lambda quota: quota[0] / quota[1])
    left = max(0, left)
    share = left / allowed
    stands = Stands.WRONG if share < limit else Stands.WELL if share >= limit * CLEAR else Stands.BETWEEN
    return stands, f"{left:,} of {allowed:,} requests of its quota are left", None


def duration(seconds: float) -> str:
    """For people: the two largest units."""
    minutes = round(seconds / 60)
    hours = minutes // 60
    if seconds < 90:
        return f"{seconds:.0f} s"
    if hours < 2:
        return f"{minutes} min"
    return f"{hours} h {minutes % 60} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"


def _waiting(number: int) -> str:
    return "1 lead waits" if number == 1 else f"{_count(number)} leads wait"


def _open(number: int) -> str:
    return "1 dead letter is open" if number == 1 else f"{_count(number)} dead letters are open"


def _count(number: int) -> str:
    return f"{number:,}" if number <= figures.BOUND else f"{figures.BOUND:,}+"
