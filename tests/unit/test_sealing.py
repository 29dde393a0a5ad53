"""Sealing: what is damaged, moved or sealed with another key does not open."""

import base64

import pytest

from leadsync.errors import ConfigError, SnapshotError
from leadsync.sealing import Sealer

OLD, NEW = (base64.b64encode(bytes([n]) * 32).decode() for n in (1, 2))


def test_it_opens_what_it_sealed_and_hides_it() -> None:
    sealer = Sealer(NEW)
    blob = sealer.seal(b"Wei Zhang" * 100, "chunk 1")
    assert sealer.open(blob, "chunk 1") == b"Wei Zhang" * 100
    assert b"Wei" not in blob


def test_a_rotated_key_still_opens() -> None:
    assert Sealer(f"{NEW},{OLD}").open(Sealer(OLD).seal(b"x", "c"), "c") == b"x"


@pytest.mark.parametrize("position", [17, 20, -1])
def test_a_flipped_bit_is_noticed(position: int) -> None:
    blob = bytearray(Sealer(NEW).seal(b"x" * 50, "c"))
    blob[position] ^= 1
    with pytest.raises(SnapshotError, match="damaged"):
        Sealer(NEW).open(bytes(blob), "c")


def test_a_moved_or_cut_blob_does_not_open() -> None:
    blob = Sealer(NEW).seal(b"x", "c")
    with pytest.raises(SnapshotError, match="damaged"):
        Sealer(NEW).open(blob, "d")
    with pytest.raises(SnapshotError, match="damaged"):
        Sealer(NEW).open(blob[:-1], "c")
    with pytest.raises(SnapshotError, match="a key that LEADSYNC_ENCRYPTION_KEY does not list"):
        Sealer(OLD).open(blob, "c")


@pytest.mark.parametrize("keys", ["", " , ", "abc", base64.b64encode(b"short").decode(), "not base64!"])
def test_a_wrong_key_names_the_remedy(keys: str) -> None:
    with pytest.raises(ConfigError, match="make one: python"):
        Sealer(keys)


def test_a_name_tells_nothing_without_the_newest_key() -> None:
    name = Sealer(NEW).name("secret")
    assert name == Sealer(f"{NEW},{OLD}").name("secret")
    assert len({name, Sealer(NEW).name("other"), Sealer(f"{OLD},{NEW}").name("secret")}) == 3
