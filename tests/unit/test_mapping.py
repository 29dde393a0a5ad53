"""Mapping: routing, transforms, deletes, external ids, hashes."""

from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from leadsync.config import Destination, FieldMapping, Source
from leadsync.mapping import DELETED, Mapper, join_key, split_key
from leadsync.transforms import MappingFailure, single

COLUMNS = ("appkey", "uid", "email", "answers", "update_time", "is_delete")
SOURCE = Source(table="t", key=("appkey", "uid"), watermark="update_time", deleted="is_delete", columns=COLUMNS)


def mapper(fields: dict[str, Any], **more: Any) -> Mapper:
    data = {"name": "d", "adapter": "a", "object": "o", "external_id_field": "x", "fields": fields, **more}
    return Mapper(SOURCE, Destination.model_validate(data))


def row(**values: str | None) -> list[str | None]:
    base = {"appkey": "A", "uid": "1", "update_time": "2026-01-02 03:04:05.6789+00", "is_delete": "f"}
    return [{**base, **values}.get(column) for column in COLUMNS]


@pytest.mark.parametrize(
    ("rule", "value", "expected"),
    [
        ("email", "a@b", "a@b"),
        ("email", None, None),
        ({"column": "email", "transform": ["trim", "lower"]}, " A@B ", "a@b"),
        ({"column": "email", "default": "none"}, "", "none"),
        ({"column": "email", "transform": "digits"}, "+86 130", "86130"),
        ({"column": "email", "max_length": 3}, "abcdef", "abc"),
        ({"column": "email", "transform": "integer"}, "12", 12),
        ({"column": "email", "transform": "number"}, "1.5", 1.5),
        ({"column": "email", "transform": "boolean"}, "t", True),
        ({"column": "email", "transform": "iso8601"}, "2026-01-02 03:04:05.6789+02", "2026-01-02T01:04:05.678Z"),
        ({"column": "email", "transform": "epoch_ms"}, "1970-01-01 00:00:01.5+00", 1500),
        ({"column": "email", "path": "utm.source"}, '{"utm": {"source": "ad"}}', "ad"),
        ({"column": "email", "path": "utm.source"}, '{"utm": []}', None),
        ({"column": "email", "transform": "json"}, '{"a": [1]}', {"a": [1]}),
        ({"constant": "web"}, None, "web"),
    ],
)
def test_a_field(rule: Any, value: str | None, expected: object) -> None:
    assert mapper({"F": rule}).map(row(email=value)).fields == {"F": expected}


@pytest.mark.parametrize(
    ("rule", "value", "reason"),
    [
        ({"column": "email", "required": True}, "", "required"),
        ({"column": "email", "transform": "integer"}, "Zhang", "can't be converted"),
        ({"column": "email", "transform": "number"}, "NaN", "finite"),
        ({"column": "email", "transform": "iso8601"}, "infinity", "not a date"),
        ({"column": "email", "transform": "iso8601"}, "0044-03-15 00:00:00+00 BC", "not a date"),
        ({"column": "email", "path": "a"}, "{", "can't be converted"),
    ],
)
def test_a_lead_that_can_not_be_mapped_names_the_field_and_not_the_value(rule: Any, value: str, reason: str) -> None:
    with pytest.raises(MappingFailure, match=f"F: .*{reason}") as caught:
        mapper({"F": rule}).map(row(email=value))
    assert "Zhang" not in str(caught.value)


def test_a_null_key_is_a_failure_of_that_lead() -> None:
    with pytest.raises(MappingFailure, match="uid: the key column is NULL"):
        mapper({"F": "email"}).map(row(uid=None))


@given(st.lists(st.tuples(st.text(":\\ab"), st.text(":\\ab")), min_size=2, max_size=2, unique=True))
def test_two_leads_never_share_an_external_id(keys: list[tuple[str, str]]) -> None:
    one, two = (mapper({"F": "email"}).external_id(row(appkey=a, uid=u)) for a, u in keys)
    assert one != two


@given(st.lists(st.text(":\\ab"), min_size=1, max_size=3))
def test_an_external_id_tells_its_key_columns(values: list[str]) -> None:
    assert split_key(join_key(values)) == tuple(values)


def test_a_deleted_lead_has_one_hash_for_all() -> None:
    assert {mapper({"F": "email"}).map(row(email=e, is_delete="t")).digest for e in ("a", "b")} == {DELETED}


def test_a_delete_has_no_fields_unless_it_sets_one() -> None:
    deleted = row(email="a", is_delete="t")
    mapped = mapper({"F": "email"}).map(deleted)
    assert mapped.delete
    assert mapped.fields == {}
    mapped = mapper({"F": "email"}, on_delete={"mode": "field", "field": "Gone", "value": True}).map(deleted)
    assert not mapped.delete
    assert mapped.fields == {"F": "a", "Gone": True}


def test_routing_by_appkey() -> None:
    routed = mapper({"F": "email"}, route={"appkey": ["A", "B"]}).routed
    assert routed(row())
    assert not routed(row(appkey="C"))


def test_the_digest_tells_states_apart() -> None:
    map_ = mapper({"F": "email"}).map
    assert map_(row(email="a")).digest == map_(row(email="a", update_time="2030-01-01 00:00:00+00")).digest
    assert len({map_(row(email=e, is_delete=d)).digest for e in ("a", "b", None) for d in ("f", "t")}) == 4


TEXTS = st.none() | st.text("aB é\\:")
RULES = st.fixed_dictionaries(
    {"column": st.just("email")},
    optional={
        "transform": st.lists(st.sampled_from(["trim", "lower", "upper", "digits", "integer"]), max_size=3),
        "default": st.sampled_from(["", "none", "ünknown", 7]),
        "max_length": st.integers(1, 4),
        "required": st.booleans(),
    },
)


@example({"column": "email", "required": False}, ["", None])
@given(RULES, st.lists(TEXTS, min_size=1, max_size=5))
def test_a_column_at_once_is_each_value_alone(rule: dict[str, Any], values: list[str | None]) -> None:
    def alone(value: str | None) -> object:
        try:
            return single("F", FieldMapping.model_validate(rule))(value)
        except MappingFailure as failure:
            return failure.reason

    plain = "default" not in rule and not any(rule.get(name) for name in ("transform", "max_length", "required"))
    expected = [value if plain else alone(value) for value in values]
    rows = [row(uid=str(number), email=value) for number, value in enumerate(values)]
    found = mapper({"F": rule}).map_columns(list(zip(*rows, strict=True)))
    assert [f.reason if isinstance(f, MappingFailure) else f.fields["F"] for f in found] == expected


@given(st.lists(st.tuples(TEXTS, TEXTS, st.sampled_from(["t", "f", None])), min_size=1, max_size=6))
def test_rows_mapped_together_are_each_row_alone(values: list[tuple[str | None, str | None, str | None]]) -> None:
    map_ = mapper({"F": {"column": "answers", "transform": "integer"}, "G": "email"})
    rows = [row(uid=uid, answers=answer, is_delete=gone) for uid, answer, gone in values]

    def alone(one: list[str | None]) -> object:
        try:
            return map_.map(one)
        except MappingFailure as failure:
            return str(failure)

    found = map_.map_columns(list(zip(*rows, strict=True)))
    assert [str(f) if isinstance(f, MappingFailure) else f for f in found] == [alone(one) for one in rows]
