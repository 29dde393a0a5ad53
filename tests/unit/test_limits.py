"""The arithmetic of the budget: what spacing promises, what names an account, what settings replace."""

from __future__ import annotations

import random
from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.windows import busiest

from leadsync.budget import SAFETY, Limit, account_key, rate
from leadsync.crm.base import Settings
from leadsync.crm.hubspot import HubSpot
from leadsync.crm.salesforce import Salesforce

DAY = 86_400


@given(
    requests=st.integers(1, 200), seconds=st.sampled_from([1.0, 2.0, 10.0, 60.0]),
    reserve=st.sampled_from([0.0, 0.05, 0.3]), seed=st.integers(0, 2**32),
)  # fmt: skip
def test_no_window_sees_more_than_the_limit_however_late_requests_arrive(
    requests: int, seconds: float, reserve: float, seed: int
) -> None:
    chance = random.Random(seed)  # noqa: S311
    spacing = 1 / rate([Limit(requests, seconds)], reserve)
    # A little less than the safety, for floating point; half of the requests as late as can be.
    late = [chance.choice([0.0, 1.0, chance.random()]) * SAFETY * seconds * 0.999 for _ in range(requests * 4)]
    arrivals = [number * spacing + delay for number, delay in enumerate(late)]
    assert busiest(arrivals, seconds) <= requests


@given(requests=st.integers(1, 1000), seconds=st.floats(0.5, 60), reserve=st.floats(0, 0.9))
def test_what_the_reserve_leaves_is_used_to_95_percent(requests: int, seconds: float, reserve: float) -> None:
    allowed = requests * (1 - reserve) / seconds
    assert 0.95 * allowed <= rate([Limit(requests, seconds)], reserve) <= allowed


def test_the_slowest_limit_sets_the_pace_and_those_of_a_day_do_not() -> None:
    assert rate([Limit(190, 10), Limit(4, 1), Limit(10, DAY)], 0) == pytest.approx(4 / (1 + SAFETY))
    assert rate([Limit(10, DAY)], 0) == inf


def test_the_limits_that_are_shipped() -> None:
    assert rate(HubSpot.limits, 0.05) == pytest.approx(9.5 / (1 + SAFETY))
    assert rate(Salesforce.limits, 0) == pytest.approx(20 / (1 + SAFETY))
    assert [limit for limit in Salesforce.limits if not limit.spaced] == [Limit(100_000, DAY)]


def test_settings_stand_for_the_vendors_limits() -> None:
    published = (Limit(100, 10), Limit(250_000, DAY))
    assert Settings().limits(published) == [*published]
    assert Settings(requests_per_second=19).limits(published) == [Limit(250_000, DAY), Limit(19, 1)]
    assert Settings(requests_per_day=650_000).limits(published) == [Limit(100, 10), Limit(650_000, DAY)]


def test_an_account_has_one_key_however_its_address_is_spelt() -> None:
    key = account_key("https://api.example.com", "", "s3cret-token")
    assert account_key("https://API.example.com:443/", "", "s3cret-token") == key
    for other in (
        account_key("https://api.example.com:8443", "", "s3cret-token"),
        account_key("https://api.example.com/tenant", "", "s3cret-token"),
        account_key("https://api.example.com", "", "other-token"),
        account_key("https://api.example.com", "login", "s3cret-token"),
    ):
        assert other != key


def test_a_new_password_is_the_same_account_and_no_key_tells_a_secret() -> None:
    key = account_key("https://crm.example.com", "login", "old-secret")
    assert account_key("https://crm.example.com", "login", "new-secret") == key
    assert len(key) == 32
    assert int(key, 16)
