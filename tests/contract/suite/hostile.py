"""What an adapter makes of replies that no CRM should give: recorded ones, broken at random."""

from __future__ import annotations

import json
import math
import traceback
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import orjson
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st
from urllib3 import HTTPHeaderDict

from leadsync.config import Destination
from leadsync.crm import registry
from leadsync.crm.base import BatchRefused, CRMAdapter
from leadsync.crm.http import Reply
from leadsync.errors import AccessError, QuotaExceeded, Unavailable
from leadsync.models import Outcome
from tests.contract.suite.case import Case
from tests.support.simulators import Simulator

DOCUMENTED = (Unavailable, AccessError, QuotaExceeded, BatchRefused)
DELIVERS = (1, 3)  # `deliver` makes outcomes of a refused batch
MARK = "Zoë Geheim, 47 Elm Street"  # what the lead holds, and the CRM quotes
DEEP = b"[" * 5000 + b"]" * 5000
STATUSES = [200, 201, 202, 204, 207, 301, 400, 401, 403, 404, 409, 413, 422, 429, 500, 503]

TEXTS = st.sampled_from(["", MARK, "\0", "0", "1", "true", "ASDAD:0", "a" * 300, "9" * 5000]) | st.text(max_size=20)
# What is apt to break something: a quoted lead, what PostgreSQL does not take, what no number holds.
NASTY = st.sampled_from([MARK, "\0", "9" * 5000, 10**400, -1, 1e308, None, True, [], {}, [[]], {"": MARK}, [MARK]])
NUMBERS = st.integers() | st.sampled_from([0, 1, -1, 2**63, 10**400, 1e308]) | st.floats(allow_nan=False)
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)
Act = Callable[[CRMAdapter], Any]


class Hostile(Case):
    def test_a_hostile_reply_does_no_harm(self, crm: Simulator, destination: Destination) -> None:
        """Whatever comes: one outcome for each lead or a documented error, fit to be kept, that quotes no lead."""
        leads = [self.lead(number, **{self.text_field: MARK}) for number in range(3)]
        ids = [lead.external_id for lead in leads]
        acts: list[Act] = [
            lambda adapter: adapter.check(),
            lambda adapter: adapter.deliver(leads),
            lambda adapter: adapter.fetch(ids),
            lambda adapter: adapter.deliver(leads, delete=True),
            lambda adapter: adapter.end_work(),
        ]
        recorded = [record(registry.build(destination, crm.endpoint), act) for act in acts]
        choices = [(act, place) for act, replies in enumerate(recorded) for place in range(len(replies))]
        patient = destination.model_copy(
            update={"settings": {**destination.settings, "requests_per_second": 1e9, "reserve": 0}}
        )

        @settings(max_examples=50, deadline=None, suppress_health_check=list(HealthCheck))
        @given(st.sampled_from(choices), st.data())
        def try_one(choice: tuple[int, int], data: st.DataObject) -> None:
            act, place = choice
            replies = list(recorded[act])
            replies[place] = broken(replies[place], data)
            note(f"act {act}, reply {place}: {replies[place].status} {replies[place].body[:300]!r}")
            adapter = registry.build(patient, crm.endpoint)
            play(adapter, replies)
            try:
                found = acts[act](adapter)
            except DOCUMENTED as error:
                assert_tells_nothing(error, act)
            else:
                if act in DELIVERS:
                    assert [outcome.external_id for outcome in found] == ids
                    for outcome in found:
                        assert_can_be_kept(outcome)
                elif act == 2:
                    assert set(found) == set(ids)
                    for records in found.values():
                        assert all(is_text(each.crm_id) for each in records)
            finally:
                adapter.close()

        try_one()


def record(adapter: CRMAdapter, act: Act) -> list[Reply]:
    """The replies that one act gets."""
    replies: list[Reply] = []
    exchange = adapter.http._exchange

    def listening(*request: Any) -> Reply:
        replies.append(exchange(*request))
        return replies[-1]

    adapter.http._exchange = listening  # type: ignore[method-assign]
    act(adapter)
    adapter.close()
    return replies


def play(adapter: CRMAdapter, replies: list[Reply]) -> None:
    """Answers in turn; the last one stays, until nobody could still be asking for a reason."""
    left, asked = list(replies), [0]

    def answer(*request: Any) -> Reply:
        asked[0] += 1
        assert asked[0] < 500, "it asks for ever"
        return left.pop(0) if len(left) > 1 else left[0]

    adapter.http._exchange = answer  # type: ignore[method-assign]
    adapter.http.sleep = lambda seconds: None


def broken(reply: Reply, data: st.DataObject) -> Reply:
    """The reply with status, a header, or the body changed."""
    how = data.draw(
        st.sampled_from(["status", "header", "value", "value", "value", "cut", "bytes", "deep", "document"])
    )
    if how == "status":
        return replace(reply, status=data.draw(st.sampled_from(STATUSES)))
    if how == "header":
        names = ["Retry-After", *reply.headers]
        value = data.draw(TEXTS.filter(lambda text: text.isprintable()) | st.just("9" * 400))
        headers = HTTPHeaderDict({**reply.headers, data.draw(st.sampled_from(names)): value})
        return Reply(data.draw(st.sampled_from([reply.status, 429, 503])), headers, reply.body)
    if how == "cut":
        return replace(reply, body=reply.body[: data.draw(st.integers(0, max(0, len(reply.body) - 1)))])
    if how == "bytes":
        start = data.draw(st.integers(0, len(reply.body)))
        end = data.draw(st.integers(start, len(reply.body)))
        return replace(reply, body=reply.body[:start] + data.draw(st.binary(max_size=20)) + reply.body[end:])
    if how == "deep":
        return replace(reply, body=DEEP)
    status = data.draw(st.just(reply.status) | st.sampled_from(STATUSES))
    if how == "document":
        return Reply(status, reply.headers, dumped(data.draw(VALUES)))
    try:
        document = orjson.loads(reply.body)
    except orjson.JSONDecodeError:
        return Reply(status, reply.headers, reply.body.replace(b",", data.draw(TEXTS).encode(), 1))
    return Reply(status, reply.headers, dumped(changed(document, data)))


def changed(document: Any, data: st.DataObject) -> Any:
    """The document with one value of it, however deep, replaced or left out."""
    if isinstance(document, dict | list) and document and data.draw(st.integers(0, 9)):
        keys = list(document) if isinstance(document, dict) else list(range(len(document)))
        key = data.draw(st.sampled_from(keys))
        result = document.copy()
        if data.draw(st.integers(0, 9)) == 0:
            del result[key]
        else:
            result[key] = changed(document[key], data)
        return result
    return data.draw(NASTY | VALUES)


def dumped(document: Any) -> bytes:
    """JSON with numbers of any size."""
    return json.dumps(document).encode()


def assert_tells_nothing(error: Exception, act: int) -> None:
    assert act not in DELIVERS or not isinstance(error, BatchRefused)
    assert MARK not in "".join(traceback.format_exception(error))
    waits = getattr(error, "retry_after", None)
    assert waits is None or math.isfinite(waits)


def assert_can_be_kept(outcome: Outcome) -> None:
    for text in (outcome.crm_id, outcome.code, outcome.field):
        assert text is None or is_text(text)
    assert outcome.message is None or isinstance(outcome.message, str)
    assert outcome.retry_after is None or math.isfinite(outcome.retry_after)


def is_text(value: object) -> bool:
    """Whether PostgreSQL takes it."""
    return isinstance(value, str) and "\0" not in value
