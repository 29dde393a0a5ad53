"""HubSpot's adapter against the simulator."""

from tests.contract.suite import AdapterSuite


class TestHubSpot(AdapterSuite):
    name = "hubspot"
    text_field = "leadsync_answers"
    good = {"firstname": "Li Lei", "city": "Berlin"}
    bad = {"email": "no address"}
    renews = False
    unknown_version = {"api_version": "2031-03"}
