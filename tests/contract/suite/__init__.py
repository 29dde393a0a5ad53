"""What every adapter has to do, inherited by the test of each: three attributes and a simulator."""

from tests.contract.suite.case import before, requests
from tests.contract.suite.delivery import Delivery
from tests.contract.suite.failures import Failures
from tests.contract.suite.hostile import Hostile
from tests.contract.suite.setup import Setup

__all__ = ["AdapterSuite", "before", "requests"]


class AdapterSuite(Delivery, Failures, Hostile, Setup):
    """Inherit it, set the attributes of `Case`, override nothing."""
