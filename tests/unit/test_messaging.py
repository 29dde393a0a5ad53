"""Addresses of alerts: which are right, that each is known again, and that none is ever shown."""

from __future__ import annotations

import logging

import pytest
from tests.support.receiver import Receiver
from tests.support.servers import free_port

from leadsync import messaging

SLACK = "https://hooks.slack.com/services/T1JJ3T3L2/A1BRTD4JD/TIiajkdnlazkcOXrIdevi7FQ"
SECRETS = ("TIiajkdnlazkcOXrIdevi7FQ", "s3cret", "hook-secret")


def test_addresses_are_separated_by_white_space_and_named_by_their_kind() -> None:
    found, wrong = messaging.addresses(f"json://127.0.0.1:1/a\n  {SLACK}\tmailto://me:s3cret@example.com \n")
    assert [each.name for each in found] == ["address 1 (JSON)", "address 2 (Slack)", "address 3 (E-Mail)"]
    assert wrong is None
    assert messaging.addresses(" \n") == ([], None)


def test_wrong_ones_are_told_by_their_number_and_keep_nobody_from_the_others() -> None:
    found, wrong = messaging.addresses("nothing://s3cret json://127.0.0.1:1/a s3cret")
    assert [each.name for each in found] == ["address 2 (JSON)"]
    assert str(wrong) == "Apprise does not know the addresses 1, 3 of connection leadsync_alerts"
    _, wrong = messaging.addresses("slack://s3cret")
    assert str(wrong) == "Apprise does not know address 1 of connection leadsync_alerts"


def test_each_is_known_again_without_its_secret() -> None:
    def keys(text: str) -> list[str]:
        return [each.key for each in messaging.addresses(text)[0]]

    first, second = keys("json://me:s3cret@127.0.0.1:1/a json://127.0.0.1:1/b")
    assert first != second
    assert keys("json://127.0.0.1:1/b json://me:s3cret@127.0.0.1:1/a") == [second, first], "whatever their order"
    assert keys("json://me:changed@127.0.0.1:1/a") == [first], "a new password is still the same address"
    assert len(set(keys("json://me:one@127.0.0.1:1/a json://me:two@127.0.0.1:1/a"))) == 2


def test_nothing_of_an_address_is_logged(caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]) -> None:
    receiver = Receiver()
    try:
        with caplog.at_level(1):
            found, _ = messaging.addresses(f"{receiver.url} json://me:s3cret@127.0.0.1:{free_port()}/ slack://s3cret")
            assert [each.send("title", "text", good=True) for each in found] == [True, False]
            receiver.status = 500
            assert not found[0].send("title", "text", good=False)
            logging.getLogger("other").info("still heard")
    finally:
        receiver.close()
    assert receiver.messages == [
        {"version": "1.0", "title": "title", "message": "text", "attachments": [], "type": "success"}
    ]
    assert "still heard" in caplog.text
    for secret in SECRETS:
        assert secret not in caplog.text + "".join(capfd.readouterr()) + repr(found)
