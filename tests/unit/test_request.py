"""The parameters of a run."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from leadsync.config import load_pipeline
from leadsync.errors import ConfigError
from leadsync.request import Request, read_request

PIPELINE = load_pipeline(Path(__file__).parents[2] / "include" / "pipelines" / "leads.yaml")


def test_no_parameters_mean_all_destinations() -> None:
    assert read_request(PIPELINE, {}) == Request(destinations=("hubspot", "salesforce"))


def test_all_parameters() -> None:
    parameters = {"since": "2026-01-01T08:00:00+08:00", "until": "2026-02-01T00:00:00Z", "destinations": ["hubspot"],
                  "resend": True, "dry_run": True}  # fmt: skip
    expected = Request(
        datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 2, 1, tzinfo=UTC), ("hubspot",), True, True, True
    )
    assert read_request(PIPELINE, parameters) == expected


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ({"since": "2026-01-01T00:00:00"}, "`since` has no offset"),
        ({"since": "yesterday"}, "`since` is not an RFC 3339 time"),
        ({"since": "2999-01-01T00:00:00Z"}, "is in the future"),
        ({"until": "2026-01-01T00:00:00Z"}, "`until` needs `since`"),
        ({"since": "2026-01-02T00:00:00Z", "until": "2026-01-01T00:00:00Z"}, "must be before"),
        ({"destinations": ["zoho"]}, "no 'zoho'; allowed: hubspot, salesforce"),
    ],
)
def test_wrong_parameters_name_themselves(parameters: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        read_request(PIPELINE, parameters)
