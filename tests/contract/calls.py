"""Plain calls to the simulators, as any client could make them."""

from __future__ import annotations

from typing import Any

import requests

from tests.support.simulators import Simulator

KEY = {"hubspot": "leadsync_external_id", "salesforce": "Leadsync_Id__c"}
CONTACTS = "/crm/v3/objects/contacts"
DATA = "/services/data/v62.0"
LEADS = f"{DATA}/composite/sobjects/Lead/Leadsync_Id__c"


class Client:
    """Calls one simulator with its credentials; logs in where that is needed."""

    def __init__(self, simulator: Simulator) -> None:
        self.simulator = simulator
        self.token = simulator.token if simulator.kind == "hubspot" else self.log_in().json()["access_token"]

    def log_in(self, **changes: str) -> requests.Response:
        form = {
            "grant_type": "client_credentials",
            "client_id": self.simulator.client_id,
            "client_secret": self.simulator.client_secret,
        }
        return requests.post(f"{self.simulator.url}/services/oauth2/token", data=form | changes, timeout=10)

    def call(self, method: str, path: str, document: Any = None, **params: str) -> requests.Response:
        headers = {"Authorization": f"Bearer {self.token}"}
        url = self.simulator.url + path
        return requests.request(method, url, json=document, params=params, headers=headers, timeout=10)

    def upsert(self, *external_ids: str, **fields: Any) -> requests.Response:
        """Upserts valid records, with these fields too."""
        key = KEY[self.simulator.kind]
        if self.simulator.kind == "hubspot":
            inputs = [
                {"id": external_id, "idProperty": key, "objectWriteTraceId": external_id, "properties": fields}
                for external_id in external_ids
            ]
            return self.call("POST", f"{CONTACTS}/batch/upsert", {"inputs": inputs})
        lead = {"attributes": {"type": "Lead"}, "LastName": "Li", "Company": "X", **fields}
        records = [{**lead, key: external_id} for external_id in external_ids]
        return self.call("PATCH", LEADS, {"allOrNone": False, "records": records})
