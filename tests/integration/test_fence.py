"""The locks, on a real PostgreSQL."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import psycopg
import pytest

from leadsync.errors import FenceLost, TransientFailure, Unavailable
from leadsync.state import fence, watermark

Connection = psycopg.Connection[Any]
LONGEST = 30.0


@pytest.fixture
def destination(state: Connection) -> int:
    watermark.register(state, "leads", "crm", None)
    return watermark.read(state, "leads", ["crm"])["crm"].destination_id


@pytest.fixture
def other(state: Connection) -> Iterator[Connection]:
    info = state.info
    dsn = f"postgresql://{info.user}@{info.host}:{info.port}/{info.dbname}"
    with psycopg.connect(dsn, autocommit=True) as connection:
        yield connection


def take(connection: Connection, destination: int, waits: list[float]) -> fence.Fence:
    with fence.hold(connection, destination, LONGEST, patience=0, sleep=waits.append) as held:
        return held


def test_loads_of_one_destination_exclude_each_other(state: Connection, other: Connection, destination: int) -> None:
    with fence.hold(state, destination, LONGEST), pytest.raises(Unavailable, match="another load"):
        take(other, destination, [])
    take(other, destination, [])


def test_a_clean_end_leaves_nothing_to_wait_for(state: Connection, other: Connection, destination: int) -> None:
    with fence.hold(state, destination, LONGEST) as held:
        held.busy()
    waits: list[float] = []
    take(other, destination, waits)
    assert waits == []


def test_what_a_dead_sender_had_under_way_is_waited_out(state: Connection, other: Connection, destination: int) -> None:
    with pytest.raises(ZeroDivisionError), fence.hold(state, destination, LONGEST) as held:  # noqa: PT012
        held.busy()
        raise ZeroDivisionError
    waits: list[float] = []
    take(other, destination, waits)
    assert waits == [pytest.approx(LONGEST + fence.CHECK_SECONDS, abs=0.5)]


def test_what_a_dead_sender_left_at_work_is_ended_after_its_last_request(
    state: Connection, other: Connection, destination: int
) -> None:
    with pytest.raises(ZeroDivisionError), fence.hold(state, destination, LONGEST) as held:  # noqa: PT012
        held.busy()
        raise ZeroDivisionError
    steps: list[float | str] = []
    longest = pytest.approx(LONGEST + fence.CHECK_SECONDS, abs=0.5)

    def end_work() -> bool:
        steps.append("ended")
        return True

    def fail() -> bool:
        raise Unavailable("it goes on")

    for _ in range(2):  # as long as it can't be ended everybody tries
        with (
            pytest.raises(Unavailable, match="goes on"),
            fence.hold(other, destination, LONGEST, end_work=fail, sleep=steps.append),
        ):
            raise AssertionError("it was not ended")
    with fence.hold(other, destination, LONGEST, end_work=end_work, sleep=steps.append):
        pass
    assert steps == [longest, longest, longest, "ended", longest]
    with fence.hold(other, destination, LONGEST, end_work=fail, sleep=steps.append):
        pass  # nobody died: nothing can be left
    assert len(steps) == 5


def test_what_a_load_leaves_at_work_keeps_its_mark(state: Connection, other: Connection, destination: int) -> None:
    ended: list[bool] = []
    for error in (None, TransientFailure("later")):
        with suppress(TransientFailure), fence.hold(state, destination, LONGEST) as held:
            held.busy()
            held.left_at_work()
            if error:
                raise error
        with fence.hold(
            other, destination, LONGEST, end_work=lambda: bool(ended.append(True)), sleep=lambda seconds: None
        ):
            pass
    assert ended == [True, True]


def test_a_request_without_an_answer_is_waited_out(state: Connection, other: Connection, destination: int) -> None:
    with pytest.raises(TransientFailure), fence.hold(state, destination, LONGEST) as held:  # noqa: PT012
        held.busy()
        held.unanswered()
        raise TransientFailure("later")
    waits: list[float] = []
    take(other, destination, waits)
    assert len(waits) == 1
    assert waits[0] > LONGEST


def test_a_lost_connection_stops_the_senders(state: Connection, other: Connection, destination: int) -> None:
    with pytest.raises(FenceLost), fence.hold(state, destination, LONGEST) as held:  # noqa: PT012
        held.check()
        other.execute("SELECT pg_terminate_backend(%s)", (state.info.backend_pid,))
        with pytest.raises(FenceLost):
            held.confirm()
        held.check()
    take(other, destination, [])


def test_a_load_under_way_is_waited_for(state: Connection, other: Connection, destination: int) -> None:
    waits: list[float] = []
    with fence.hold(other, destination, LONGEST):
        with pytest.raises(Unavailable, match="a load of this destination has held its lock"):
            fence.wait_for_load(state, destination, patience=0, sleep=waits.append)
        fence.wait_for_load(state, destination + 1, patience=0)
    fence.wait_for_load(state, destination, patience=0)
    take(other, destination, [])  # it does not keep the lock


def test_snapshots_of_one_pipeline_exclude_each_other(state: Connection, other: Connection) -> None:
    with (
        fence.pipeline_lock(state, "leads"),
        pytest.raises(Unavailable),
        fence.pipeline_lock(other, "leads", patience=0, sleep=lambda seconds: None),
    ):
        raise AssertionError("two at once")
    with fence.pipeline_lock(other, "leads", patience=0):
        pass


ONE, TWO = "00000000-0000-0000-0000-000000000001", "00000000-0000-0000-0000-000000000002"


def join(connection: Connection, destination: int, sync_id: str, shard: int, waits: list[float]) -> fence.Fence:
    with fence.share(connection, destination, LONGEST, sync_id, shard, patience=0, sleep=waits.append) as held:
        return held


def test_shards_of_one_load_share_the_lock(state: Connection, other: Connection, destination: int) -> None:
    with fence.share(state, destination, LONGEST, ONE, 0):
        join(other, destination, ONE, 1, [])
        with pytest.raises(Unavailable, match="another load"):
            join(other, destination, ONE, 0, [])  # the same shard again
        with pytest.raises(Unavailable, match="another load"):
            join(other, destination, TWO, 1, [])  # of another load
        with pytest.raises(Unavailable, match="another load"):
            take(other, destination, [])
    join(other, destination, TWO, 1, [])
    take(other, destination, [])


def test_a_load_waits_for_the_last_shard_of_another(state: Connection, other: Connection, destination: int) -> None:
    with fence.share(state, destination, LONGEST, ONE, 0):
        pass
    with fence.share(state, destination, LONGEST, ONE, 1), pytest.raises(Unavailable):
        join(other, destination, TWO, 0, [])
    with fence.hold(state, destination, LONGEST), pytest.raises(Unavailable):
        join(other, destination, ONE, 1, [])


def die_busy(connection: Connection, destination: int, sync_id: str, shard: int) -> None:
    with pytest.raises(ZeroDivisionError), fence.share(connection, destination, LONGEST, sync_id, shard) as held:  # noqa: PT012
        held.busy()
        raise ZeroDivisionError


def test_whoever_comes_first_waits_for_all_dead_shards(state: Connection, other: Connection, destination: int) -> None:
    die_busy(state, destination, ONE, 2)
    waits: list[float] = []
    join(other, destination, TWO, 0, waits)
    assert waits == [pytest.approx(LONGEST + fence.CHECK_SECONDS, abs=0.5)]
    join(other, destination, TWO, 1, waits)
    assert len(waits) == 1


def test_a_shard_whose_predecessor_died_waits_until_it_is_alone(
    state: Connection, other: Connection, destination: int
) -> None:
    """What the dead one left at work in the CRM can't be told from what its siblings have there."""
    waits: list[float] = []
    with fence.share(state, destination, LONGEST, ONE, 0) as held:
        held.busy()
        die_busy(other, destination, ONE, 1)
        join(other, destination, ONE, 2, waits)
        assert waits == []
        with pytest.raises(Unavailable, match="another load"):
            join(other, destination, ONE, 1, [])
    join(other, destination, ONE, 1, waits)
    assert waits == [pytest.approx(LONGEST + fence.CHECK_SECONDS, abs=0.5)]
    join(other, destination, ONE, 1, waits)
    assert len(waits) == 1


def test_work_left_in_the_crm_is_ended_by_whoever_is_alone(
    state: Connection, other: Connection, destination: int
) -> None:
    die_busy(state, destination, ONE, 1)
    steps: list[object] = []

    def end_work() -> bool:
        steps.append("end")
        return True

    def failing() -> bool:
        raise TransientFailure("later")

    def shared(shard: int, end: Callable[[], bool]) -> None:
        with fence.share(
            other, destination, LONGEST, ONE, shard, end_work=end, patience=0, sleep=lambda _: steps.append("wait")
        ):
            pass

    with pytest.raises(TransientFailure):
        shared(0, failing)
    assert steps == ["wait"]
    shared(0, end_work)
    assert steps == ["wait", "wait", "end", "wait"]
    shared(1, end_work)
    assert len(steps) == 4


def test_a_shard_that_ends_does_not_speak_for_its_sibling(
    state: Connection, other: Connection, destination: int
) -> None:
    with pytest.raises(ZeroDivisionError), fence.share(state, destination, LONGEST, ONE, 0) as held:  # noqa: PT012
        held.busy()
        with fence.share(other, destination, LONGEST, ONE, 1) as sibling:
            sibling.busy()
        raise ZeroDivisionError
    waits: list[float] = []
    take(other, destination, waits)
    assert len(waits) == 1
