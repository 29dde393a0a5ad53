"""What the cases of the suite share: the attributes that a test sets, the fixtures, leads."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
import yaml

from leadsync.config import Destination, Pipeline, load_pipeline
from leadsync.crm import registry
from leadsync.crm.base import CRMAdapter
from leadsync.models import Lead, Outcome, Status
from tests.support.simulators import Simulator, Simulators

SHIPPED = load_pipeline(Path(__file__).parents[3] / "include" / "pipelines" / "leads.yaml")


class Case:
    """One adapter before its simulator or real server."""

    name: ClassVar[str]
    text_field: ClassVar[str]  # a text of at least 1,000 characters, not required
    good: ClassVar[dict[str, Any]]  # fields of a valid lead
    bad: ClassVar[dict[str, Any]]  # fields that make a lead invalid
    # Of an upsert of `max_batch` new leads: more where records are looked up first, or go in a request each.
    requests_per_batch: ClassVar[int] = 1
    one_a_call: ClassVar[bool] = False  # whether each record is written by a request of its own
    many: ClassVar[int] = 10_000  # leads of one delivery; fewer where each costs a request or more
    renews: ClassVar[bool] = True  # False where the credentials are no login: what has ended stays so
    tells_each: ClassVar[bool] = True  # False where the reply to a batch has no result for each lead
    refuses_doubles: ClassVar[bool] = True  # False where the CRM takes a second record of an external id
    unknown_version: ClassVar[dict[str, Any]] = {}  # settings of an API version that the CRM lacks, if one can be set
    gateway_blocks: ClassVar[bool] = False  # True where a 403 that is a page is a gateway's, and passes
    has_quota: ClassVar[bool] = True  # False where the vendor knows none: a long 429 is then some gateway's
    # For an adapter that can speak to several kinds of CRM, and has a suite for each: which simulator, if it has not
    # the adapter's name, and the destination in YAML, if it is not the adapter's example.
    simulator: ClassVar[str]
    example: ClassVar[str]
    settings: ClassVar[dict[str, Any]] = {}  # of the destination, beside those of the example

    @pytest.fixture
    def crm(self, simulators: Simulators) -> Simulator:
        simulator = simulators[getattr(self, "simulator", self.name)]
        simulator.reset()
        return simulator

    @pytest.fixture
    def destination(self) -> Destination:
        example = yaml.safe_load(getattr(self, "example", registry.adapter_class(self.name).example))
        settings = {**example.get("settings", {}), "read_timeout": 20, "requests_per_second": 1000, **self.settings}
        content = {
            **SHIPPED.model_dump(exclude={"destinations"}),
            "destinations": {self.name: {**example, "settings": settings}},
        }
        pipeline = Pipeline.model_validate(content)
        registry.check_pipeline(pipeline)
        return pipeline.destinations[0]

    @pytest.fixture
    def adapter(self, crm: Simulator, destination: Destination) -> Iterator[CRMAdapter]:
        adapter = registry.build(destination, crm.endpoint)
        yield adapter
        adapter.close()

    @pytest.fixture
    def later(self, crm: Simulator, destination: Destination) -> Iterator[CRMAdapter]:
        """The adapter of another process, which knows nothing of the first."""
        later = registry.build(destination, crm.endpoint)
        yield later
        later.close()

    def lead(self, number: int, **fields: Any) -> Lead:
        return Lead(f"ASDAD:{number}", {**self.good, **fields})

    def leads(self, count: int) -> list[Lead]:
        return [self.lead(number) for number in range(count)]

    @staticmethod
    def statuses(outcomes: list[Outcome]) -> list[Status]:
        return [outcome.status for outcome in outcomes]


def requests(crm: Simulator) -> int:
    """How many it was sent so far."""
    return sum(crm.get("stats")["by_status"].values())


def before(adapter: CRMAdapter, number: int, act: Callable[[], None]) -> None:
    """Does something just before the adapter's so-manieth request from here on."""
    asked = [0]

    def ask() -> None:
        asked[0] += 1
        if asked[0] == number:
            act()

    adapter.before_request = ask
