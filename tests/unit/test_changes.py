"""Changes as the operation log keeps and shows them."""

from hypothesis import given
from hypothesis import strategies as st

from leadsync import changes
from leadsync.config import Source
from leadsync.copytext import escape
from leadsync.models import Status

SOURCE = Source(
    table="customer", key=("appkey", "uid"), watermark="update_time", columns=("appkey", "uid", "name", "update_time")
)
LINE = "ASDAD\t12345\tO'Hara\\nand \\\\son\t2026-01-31 09:30:00+00"


def test_a_change_is_a_statement() -> None:
    part = changes.pack(SOURCE, [changes.record(status, LINE) for status in changes.LETTERS])
    name = "'O''Hara\nand \\son'"
    assert list(changes.statements(part)) == [
        f"insert into customer (appkey,uid,name,update_time) values ('ASDAD',12345,{name},'2026-01-31 09:30:00+00')",  # noqa: S608
        f"update customer set name={name},update_time='2026-01-31 09:30:00+00' where appkey='ASDAD' and uid=12345",  # noqa: S608
        "delete from customer where appkey='ASDAD' and uid=12345",
    ]


@given(
    st.lists(
        st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\0")) | st.none(),
        min_size=4,
        max_size=4,
    )
)
def test_any_text_is_one_statement(values: list[str | None]) -> None:
    part = changes.pack(SOURCE, [changes.record(Status.CREATED, "\t".join(map(escape, values)))])
    (statement,) = changes.statements(part)
    assert statement.count("'") % 2 == 0
