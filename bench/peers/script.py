"""What people write by hand: fetch everything, send batches of 100 through one session. No ledger, no retry, no log."""

from __future__ import annotations

import json
import os
import time

import psycopg
import requests

QUERY = """
SELECT appkey, uid, phone, name, email, city, answers, update_time FROM customer ORDER BY update_time
"""
BATCH = 100

began = time.perf_counter()
with psycopg.connect(os.environ["BENCH_HIVE"]) as connection:
    rows = connection.execute(QUERY).fetchall()
with requests.Session() as session:
    for first in range(0, len(rows), BATCH):
        inputs = [
            {
                "id": f"{appkey}:{uid}",
                "idProperty": "leadsync_external_id",
                "properties": {
                    "leadsync_appkey": appkey, "leadsync_uid": uid, "phone": phone, "firstname": name, "email": email,
                    "city": city, "leadsync_answers": answers, "leadsync_updated_at": changed.isoformat(),
                },
            }
            for appkey, uid, phone, name, email, city, answers, changed in rows[first : first + BATCH]
        ]  # fmt: skip
        reply = session.post(
            f"{os.environ['BENCH_CRM']}/crm/v3/objects/contacts/batch/upsert", json={"inputs": inputs}, timeout=60
        )
        reply.raise_for_status()
        if len(reply.json()["results"]) != len(inputs):
            raise SystemExit("the CRM did not take all of a batch")
print(json.dumps({"rows": len(rows), "seconds": {"all": round(time.perf_counter() - began, 3)}}))
