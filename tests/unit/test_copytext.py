"""COPY text: what is escaped comes back."""

from hypothesis import given
from hypothesis import strategies as st

from leadsync import copytext

FIELD = st.none() | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))


@given(st.lists(st.lists(FIELD, min_size=2, max_size=4), min_size=1))
def test_what_is_escaped_comes_back(rows: list[list[str | None]]) -> None:
    assert [copytext.parse_line("\t".join(map(copytext.escape, row))) for row in rows] == rows


@given(st.integers(1, 4).flatmap(lambda width: st.lists(st.lists(FIELD, min_size=width, max_size=width), min_size=1)))
def test_columns_are_the_lines_turned(rows: list[list[str | None]]) -> None:
    lines = ["\t".join(map(copytext.escape, row)) for row in rows]
    assert list(map(tuple, copytext.parse_columns(lines))) == list(zip(*map(copytext.parse_line, lines), strict=True))


def test_the_escapes_of_postgresql() -> None:
    assert copytext.parse_line(r"a\tb" + "\t" + r"\N" + "\t" + r"\\N\b\f\v") == ["a\tb", None, "\\N\b\f\v"]
