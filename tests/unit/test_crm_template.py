"""Placeholders and paths: all that the description of an API is made of."""

from __future__ import annotations

from typing import Any

import pytest

from leadsync.crm.template import filled, filled_path, filled_text, find, find_all, used

LEAD = {"external_id": "A:1", "fields": {"name": "Ada", "age": 7}, "ids": ["1", "2"], "object": "Lead"}


@pytest.mark.parametrize(
    ("template", "document"),
    [
        ("{external_id}", "A:1"),
        ("id {external_id}!", "id A:1!"),
        ("{fields}", {"name": "Ada", "age": 7}),
        ("{ids}", ["1", "2"]),
        ("ids={ids}", "ids=1,2"),
        ({"a": ["{external_id}", 7, None, True]}, {"a": ["A:1", 7, None, True]}),
        ({"{object}": 1, "...": "{fields}", "z": 2}, {"Lead": 1, "name": "Ada", "age": 7, "z": 2}),
        ({"...": {"x": "{object}"}}, {"x": "Lead"}),
        ("{external_id:doubled}", "'A:1'"),
        ("{ids:backslash}", "'1','2'"),
        ("{nobody} {Object} { object } {}", "{nobody} {Object} { object } {}"),
    ],
)
def test_placeholders_are_filled_in(template: Any, document: Any) -> None:
    assert filled(template, LEAD) == document


def test_what_is_filled_in_is_not_looked_at_again() -> None:
    assert filled({"a": "{external_id}", "b": "x{external_id}"}, {"external_id": "{fields}", "fields": 1}) == {
        "a": "{fields}", "b": "x{fields}",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("literal", "text"), [("backslash", r"'a\'b\\c\nd'"), ("doubled", "'a''b\\c\nd'")]
)  # fmt: skip
def test_literals_of_query_languages_can_not_be_left(literal: str, text: str) -> None:
    assert filled_text(f"{{external_id:{literal}}}", {"external_id": "a'b\\c\nd"}) == text


def test_a_list_that_could_not_be_taken_apart_is_refused() -> None:
    with pytest.raises(ValueError, match="comma"):
        filled_text("{ids}", {"ids": ["1", "2,3"]})
    assert filled("{ids}", {"ids": ["1", "2,3"]}) == ["1", "2,3"]


def test_a_path_is_encoded_and_can_not_be_left() -> None:
    assert filled_path("/leads/{external_id}", {"external_id": "a/b?ö:1"}) == "/leads/a%2Fb%3F%C3%B6%3A1"
    for value in ("", ".", ".."):
        with pytest.raises(ValueError, match="would change the path"):
            filled_path("/leads/{external_id}", {"external_id": value})


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{ids:html}", "after the colon goes backslash or doubled"),
        ("x {leads}", "must stand alone"),
        ({"a": ["{fields} "]}, "must stand alone"),
        ({"...": "{ids}"}, "takes the members of an object"),
        ({"...": [1]}, "takes the members of an object"),
    ],
)
def test_what_is_not_written_as_it_must_be_is_refused(template: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        list(used(template))


REPLY = {"errors": [{"code": "A", "in": {"ids": ["1", "2"]}}, {"code": None}, {"in": {"ids": ["3"]}}], "n": 0}


@pytest.mark.parametrize(
    ("path", "values"),
    [
        ("", [REPLY]),
        ("n", [0]),
        ("errors.0.code", ["A"]),
        ("errors.*.code", ["A", None]),
        ("errors.*.in.ids.*", ["1", "2", "3"]),
        ("errors.7.code", []),
        ("errors.code", []),
        ("n.x", []),
        ("*.0.code", ["A"]),
    ],
)
def test_paths_lead_to_values(path: str, values: list[Any]) -> None:
    assert find_all(REPLY, path) == values


def test_the_first_value_that_is_not_null_counts() -> None:
    assert find({"a": [{"x": None}, {"x": False}]}, "a.*.x") is False
    assert find(REPLY, "nowhere") is None
    assert find(REPLY, None) is None
