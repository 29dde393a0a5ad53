"""What a CRM tells of its quota in the headers of its replies, and that nonsense there harms nothing."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from urllib3 import HTTPHeaderDict

from leadsync.config import Destination
from leadsync.crm import registry
from leadsync.crm.base import Endpoint
from leadsync.metering import Quota

DAILY = "X-HubSpot-RateLimit-Daily"
TOKENS = "x-daily-ratelimit-token"


def told(adapter: str, headers: dict[str, str]) -> Quota | None:
    example: dict[str, Any] = yaml.safe_load(registry.adapter_class(adapter).example)
    endpoint = Endpoint("https://crm.invalid", "login", "password", {"client_secret": "s", "refresh_token": "t"})
    made = registry.build(Destination.model_validate({"name": adapter, **example}), endpoint)
    try:
        return made.quota_left(HTTPHeaderDict(headers))
    finally:
        made.close()


@pytest.mark.parametrize(
    ("adapter", "headers", "quota"),
    [
        ("hubspot", {DAILY: "250000", f"{DAILY}-Remaining": "249000"}, Quota(249_000, 250_000)),
        ("hubspot", {f"{DAILY}-Remaining": "7"}, Quota(7, None)),
        ("hubspot", {DAILY: "250000"}, None),  # with OAuth it does not tell
        ("hubspot", {DAILY: "many", f"{DAILY}-Remaining": "-1"}, None),
        ("salesforce", {"Sforce-Limit-Info": "api-usage=18/5000"}, Quota(4982, 5000)),
        (
            "salesforce",
            {"Sforce-Limit-Info": "api-usage=5010/5000; per-app-api-usage=17/250(appName=x)"},
            Quota(0, 5000),
        ),
        ("salesforce", {"Sforce-Limit-Info": "per-app-api-usage=17/250(appName=x)"}, None),
        ("salesforce", {}, None),
        ("zoho", {"X-API-CREDITS-REMAINING": "1200"}, Quota(1200, None)),
        ("zoho", {"X-API-CREDITS-REMAINING": ""}, None),
        ("pipedrive", {f"{TOKENS}-remaining": "990", f"{TOKENS}-limit": "1000"}, Quota(990, 1000)),
        ("pipedrive", {f"{TOKENS}-limit": "1000"}, None),
        ("odoo", {DAILY: "250000", f"{DAILY}-Remaining": "249000"}, None),
    ],
)
def test_what_is_left(adapter: str, headers: dict[str, str], quota: Quota | None) -> None:
    assert told(adapter, headers) == quota
