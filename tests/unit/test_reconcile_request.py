"""What a reconciliation is asked for: wrong parameters are named, and each pipeline has its own time."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from tests.support.world import SHIPPED

from leadsync import reconcile_request
from leadsync.config import Pipeline, Reconcile
from leadsync.errors import ConfigError
from leadsync.reconcile_request import Request


def pipeline(name: str, cron: str | None, **more: Any) -> Pipeline:
    reconcile = Reconcile.model_validate({"cron": cron, **more})
    return SHIPPED.model_copy(update={"name": name, "reconcile": reconcile})


@pytest.mark.parametrize(
    ("parameters", "complaint"),
    [
        ({"sinse": "2026-01-01T00:00:00Z"}, "unknown parameter 'sinse'; allowed: pipeline, destinations, since"),
        ({"destinations": ["nobody"]}, "there is no 'nobody'; allowed: hubspot, salesforce"),
        ({"since": "2026-01-02T00:00:00Z", "until": "2026-01-01T00:00:00Z"}, "must be before `until`"),
        ({"since": "2026-01-01T00:00:00Z", "until": "2026-01-01T00:00:00Z"}, "must be before `until`"),
        ({"since": "2999-01-01T00:00:00Z"}, "is in the future"),
        ({"until": "2026-01-01T00:00:00"}, "`until` has no offset"),
        ({"since": "yesterday"}, "`since` is not an RFC 3339 time"),
        ({"sample": 0}, "`sample` is 0: a share above 0 and up to 1"),
        ({"sample": -0.5}, "a share above 0"),
        ({"sample": 1.5}, "a whole number of leads above 1"),
        ({"sample": "many"}, "`sample` is 'many'"),
        ({"sample": True}, "`sample` is True"),
        ({"sample": float("inf")}, "`sample` is inf"),
        ({"sample": float("nan")}, "`sample` is nan"),
    ],
)
def test_wrong_parameters_are_named(parameters: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        reconcile_request.chosen(SHIPPED, parameters)
    assert complaint in str(caught.value)


def test_right_parameters() -> None:
    read = reconcile_request.read_request
    assert read(SHIPPED, {}) == Request()
    assert read(SHIPPED, {}).nightly
    since = datetime(2026, 1, 1, tzinfo=UTC)
    parameters = {"pipeline": "leads", "since": "2026-01-01T00:00:00Z", "sample": 200, "repair": True}
    assert read(SHIPPED, parameters) == Request(since, None, 200.0, True)
    assert not read(SHIPPED, {"until": "2026-01-01T08:00:00+08:00"}).nightly
    assert not read(SHIPPED, {"sample": 1}).nightly
    mending = pipeline("leads", None, repair=True)
    assert [read(mending, {"repair": said}).repair for said in (None, True, False)] == [True, True, False]
    assert read(mending, {}).repair


def test_what_a_person_chose() -> None:
    hubspot = {"pipeline": "leads", "destination": "hubspot", "name": "hubspot"}
    assert reconcile_request.chosen(SHIPPED, {"destinations": ["hubspot"]}) == [hubspot]
    assert [item["name"] for item in reconcile_request.chosen(SHIPPED, {})] == ["hubspot", "salesforce"]


def test_each_pipeline_is_due_at_its_own_time() -> None:
    pipelines = [pipeline("a", "17 3 * * *"), pipeline("b", "17 3 * * 0"), pipeline("c", None)]
    monday, sunday = datetime(2026, 1, 5, 3, 17, tzinfo=UTC), datetime(2026, 1, 4, 3, 17, tzinfo=UTC)
    assert [item["name"] for item in reconcile_request.due(pipelines, monday)] == ["hubspot", "salesforce"]
    assert [item["name"] for item in reconcile_request.due(pipelines, sunday)] == [
        "a/hubspot", "a/salesforce", "b/hubspot", "b/salesforce",
    ]  # fmt: skip
    assert reconcile_request.due(pipelines, sunday.replace(minute=18)) == []
    assert reconcile_request.crons(pipelines) == ["17 3 * * *", "17 3 * * 0"]
    assert reconcile_request.crons(pipelines[2:]) == []
