"""COPY text: what is escaped comes back."""

from hypothesis import given
from hypothesis import strategies as st

from leadsync import copytext

FIELD = st.none() | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))


@given(st.lists(st.lists(FIELD, min_size=2, max_size=4), min_size=1))
def test_what_is_escaped_comes_back(rows: list[list[str | None]]) -> None:
    text = "".join("\t".join(map(copytext.escape, row)) + "\n" for row in rows)
    assert copytext.parse(text.encode()) == rows


def test_the_escapes_of_postgresql() -> None:
    assert copytext.parse_line(r"a\tb" + "\t" + r"\N" + "\t" + r"\\N\b\f\v") == ["a\tb", None, "\\N\b\f\v"]
