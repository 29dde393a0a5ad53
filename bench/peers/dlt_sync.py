"""dlt: an incremental SQL table into a destination function that posts batches of 100. `dlt_sync.py BACKEND [--tuned]`.

Runs in dlt's own environment (environments.py). Tuned: files small enough for 16 workers to load side by side.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from typing import Any
from urllib.parse import urlsplit

backend = sys.argv[1]
os.environ.update(RUNTIME__DLTHUB_TELEMETRY="false", RUNTIME__LOG_LEVEL="ERROR")
if "--tuned" in sys.argv:
    os.environ.update(
        EXTRACT__DATA_WRITER__FILE_MAX_ITEMS="5000", NORMALIZE__DATA_WRITER__FILE_MAX_ITEMS="5000", LOAD__WORKERS="16"
    )

import dlt  # noqa: E402 - reads its settings when it is imported
import requests  # noqa: E402
from dlt.sources.sql_database import sql_table  # noqa: E402

URL = f"{os.environ['BENCH_CRM']}/crm/v3/objects/contacts/batch/upsert"
FIELDS = {
    "appkey": "leadsync_appkey", "uid": "leadsync_uid", "phone": "phone", "name": "firstname", "email": "email",
    "city": "city", "answers": "leadsync_answers", "update_time": "leadsync_updated_at",
}  # fmt: skip
session = requests.Session()
sent = 0


def plain(value: Any) -> Any:
    return value.isoformat() if hasattr(value, "isoformat") else value


@dlt.destination(
    batch_size=100, name="crm", naming_convention="direct", skip_dlt_columns_and_tables=True, max_table_nesting=0
)
def crm(items: Any, table: Any) -> None:
    global sent
    rows = items.to_pylist() if hasattr(items, "to_pylist") else items
    inputs = [
        {
            "id": f"{row['appkey']}:{row['uid']}",
            "idProperty": "leadsync_external_id",
            "properties": {field: plain(row.get(column)) for column, field in FIELDS.items()},
        }
        for row in rows
    ]
    reply = session.post(URL, json={"inputs": inputs}, timeout=60)
    reply.raise_for_status()
    sent += len(reply.json()["results"])


def libpq_to_url(dsn: str) -> str:
    """SQLAlchemy wants the driver in the address; connectorx is given the same one by dlt."""
    return "postgresql+psycopg2" + dsn[len(urlsplit(dsn).scheme) :]


with tempfile.TemporaryDirectory() as folder:
    table = sql_table(
        credentials=libpq_to_url(os.environ["BENCH_HIVE"]),
        table="customer",
        backend=backend,
        incremental=dlt.sources.incremental("update_time"),
        chunk_size=50_000,
    )
    pipeline = dlt.pipeline("leads", destination=crm, pipelines_dir=folder)
    pipeline.run(table).raise_on_failed_jobs()
print(json.dumps({"rows": sent, "seconds": {}}))
