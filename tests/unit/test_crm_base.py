"""What `deliver` promises, whatever an adapter does: one outcome per lead, in order, and no word of the lead's told."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leadsync.budget import Limit
from leadsync.config import Destination
from leadsync.crm import registry
from leadsync.crm.base import BatchRefused, CRMAdapter, Endpoint, excerpt
from leadsync.crm.http import RequestFailed
from leadsync.errors import AccessError, ConfigError
from leadsync.models import Lead, Outcome, Record, Status


class Programmed(CRMAdapter):
    """An adapter whose CRM is a function."""

    name = "programmed"
    label = "Programmed"
    max_batch = 10
    limits = (Limit(1000, 1),)
    delete_modes = frozenset({"delete"})

    def __init__(self, crm: Callable[[Sequence[Lead]], list[Outcome]]) -> None:
        super().__init__(destination(), Endpoint("https://crm.example"))
        self.crm = crm
        self.batches: list[int] = []

    def upsert(self, leads: Sequence[Lead]) -> list[Outcome]:
        self.batches.append(len(leads))
        return self.crm(leads)

    def delete(self, leads: Sequence[Lead]) -> list[Outcome]:
        return [Outcome(lead.external_id, Status.DELETED) for lead in leads]

    def fetch(self, external_ids: Sequence[str]) -> dict[str, list[Record]]:
        return {external_id: [] for external_id in external_ids}

    def check(self) -> None:
        """Nothing to check."""


def destination(**changes: object) -> Destination:
    plain = {"adapter": "hubspot", "object": "contacts", "external_id_field": "ext", "fields": {"name": "name"}}
    return Destination.model_validate({"name": "target", "on_delete": "archive", **plain, **changes})


def leads(count: int) -> list[Lead]:
    return [Lead(f"A:{number}", {"name": f"name {number}"}) for number in range(count)]


def fine(batch: Sequence[Lead]) -> list[Outcome]:
    return [Outcome(lead.external_id, Status.UPDATED) for lead in reversed(batch)]


def test_batches_are_cut_and_the_order_is_the_callers() -> None:
    adapter = Programmed(fine)
    assert [outcome.external_id for outcome in adapter.deliver(leads(23))] == [lead.external_id for lead in leads(23)]
    assert adapter.batches == [10, 10, 3]


@given(bad=st.sets(st.integers(0, 24)))
def test_a_refused_batch_is_halved_until_the_bad_stand_alone(bad: set[int]) -> None:
    refused = {f"A:{number}" for number in bad}

    def atomic(batch: Sequence[Lead]) -> list[Outcome]:
        if any(lead.external_id in refused for lead in batch):
            raise BatchRefused("INVALID", field="name", message="no")
        return fine(batch)

    outcomes = Programmed(atomic).deliver(leads(25))
    assert {o.external_id for o in outcomes if o.status is Status.REJECTED} == refused
    assert {o.external_id for o in outcomes if o.status is Status.UPDATED} == {f"A:{n}" for n in range(25)} - refused
    assert all((o.code, o.field, o.message) == ("INVALID", "name", "no") for o in outcomes if o.external_id in refused)


def test_what_the_reply_leaves_out_is_transient() -> None:
    outcomes = Programmed(lambda batch: fine(batch)[:-1]).deliver(leads(3))
    assert [(o.status, o.code) for o in outcomes] == [
        (Status.TRANSIENT, "missing_from_reply"), (Status.UPDATED, None), (Status.UPDATED, None),
    ]  # fmt: skip


def test_what_was_not_asked_for_is_ignored() -> None:
    outcomes = Programmed(lambda batch: [*fine(batch), Outcome("other", Status.REJECTED)]).deliver(leads(2))
    assert [o.external_id for o in outcomes] == ["A:0", "A:1"]


def test_a_reply_that_contradicts_itself_is_not_believed() -> None:
    outcomes = Programmed(lambda batch: [*fine(batch), Outcome("A:1", Status.REJECTED)]).deliver(leads(2))
    assert [(o.status, o.code) for o in outcomes] == [(Status.UPDATED, None), (Status.TRANSIENT, "malformed_reply")]


def test_a_failed_request_is_the_outcome_of_its_own_leads_only() -> None:
    def sometimes(batch: Sequence[Lead]) -> list[Outcome]:
        if batch[0].external_id == "A:10":
            raise RequestFailed("503", "503", retry_after=7, sent=False)
        return fine(batch)

    outcomes = Programmed(sometimes).deliver(leads(21))
    failed = [o for o in outcomes if o.status is Status.TRANSIENT]
    assert [o.external_id for o in failed] == [f"A:{number}" for number in range(10, 20)]
    assert {(o.code, o.retry_after, o.sent) for o in failed} == {("503", 7, False)}


def test_an_access_error_ends_the_delivery() -> None:
    def refuse(batch: Sequence[Lead]) -> list[Outcome]:
        raise AccessError("no")

    with pytest.raises(AccessError):
        Programmed(refuse).deliver(leads(1))


def test_one_lead_twice_is_a_mistake_of_the_caller() -> None:
    adapter = Programmed(fine)
    with pytest.raises(ValueError, match="twice"):
        adapter.deliver([*leads(2), *leads(1)])
    assert adapter.batches == []


PERSON = Lead("A:1", {"name": 'Zoë "Z" <O\'Hara>', "email": "Zoe@Example.org", "city": "Wien", "age": 41, "x": "ab"})


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("<html>proxy error", "<html>proxy error"),
        ("for zoe@example.org and other@example.com", "for ••• and •••"),
        ("in Wien or WIEN; x ab 41", "in ••• or •••; x ab 41"),
        ("call +49 170 1234567 now", "call +49 170 ••• now"),
        ('{"name":"Zoë \\"Z\\" <O\'Hara>"}', '{"name":"•••"}'),
        ('{"name":"Zo\\u00eb \\"Z\\" <O\'Hara>"}', '{"name":"•••"}'),
        ("<p>Zoë &quot;Z&quot; &lt;O&#x27;Hara&gt;</p>", "<p>•••</p>"),
        ("y" * 500, "y" * 200),
    ],
)
def test_an_excerpt_holds_nothing_private(text: str, kept: str) -> None:
    assert excerpt(text, [PERSON]) == kept


def test_a_value_that_begins_another_does_not_leave_the_rest() -> None:
    assert excerpt("for Ada Lovelace", [Lead("A:1", {"a": "Ada", "b": "Ada Lovelace"})]) == "for •••"


def test_a_value_at_the_end_of_an_excerpt_is_not_told_in_part() -> None:
    long = Lead("A:1", {"name": "The name of a person that is long"})
    assert excerpt("x" * 190 + "The name of a person that is long", [long]) == "x" * 190 + "•••"
    assert excerpt("The name of a person that is long " * 40, [long]).strip("• ") == ""


def test_a_failed_reply_is_kept_masked() -> None:
    def broken(batch: Sequence[Lead]) -> list[Outcome]:
        raise RequestFailed("nonsense", "malformed_reply", reply="<b>name 0</b>")

    (outcome,) = Programmed(broken).deliver(leads(1))
    assert (outcome.code, outcome.message) == ("malformed_reply", "<b>•••</b>")


@pytest.mark.parametrize("url", ["", "crm.example", "ftp://crm.example", "https://user:secret@crm.example", "https://"])
def test_an_address_that_can_not_be_one_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="connection crm_target: the address must look like") as caught:
        registry.build(destination(), Endpoint(url))
    assert "secret" not in str(caught.value)


def test_an_endpoint_does_not_show_its_secrets() -> None:
    assert "secret" not in repr(Endpoint("https://crm.example", "me", "secret", {"key": "secret"}))


def test_an_excerpt_of_a_long_word_takes_no_time() -> None:
    """A picture as base64, or a page without line breaks: by the square of its length this took hours."""
    began = time.process_time()
    assert excerpt("a" * 300_000, []) == "a" * 200
    assert time.process_time() - began < 5
