"""drt: its destination `rest_api` with a batch template, 100 records a request. `drt.py COMMAND`: its path."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from urllib.parse import urlsplit

SYNC = """
name: leads
model: >
  SELECT appkey || ':' || uid AS id, appkey, uid, phone, name, email, city, answers::text AS answers,
  update_time::text AS update_time FROM customer ORDER BY update_time
destination:
  type: rest_api
  url: {crm}/crm/v3/objects/contacts/batch/upsert
  method: POST
  headers: {{Content-Type: application/json}}
  body_mode: batch
  max_records_per_request: 100
  batch_template: |
    {{"inputs": [{{% for row in rows %}}{{"id": {{{{ row.id | tojson }}}}, "idProperty": "leadsync_external_id",
    "properties": {{"leadsync_appkey": {{{{ row.appkey | tojson }}}}, "leadsync_uid": {{{{ row.uid | tojson }}}},
    "phone": {{{{ row.phone | tojson }}}}, "firstname": {{{{ row.name | tojson }}}},
    "email": {{{{ row.email | tojson }}}}, "city": {{{{ row.city | tojson }}}},
    "leadsync_answers": {{{{ row.answers | tojson }}}}, "leadsync_updated_at": {{{{ row.update_time | tojson }}}}}}}}
    {{% if not loop.last %}},{{% endif %}}{{% endfor %}}]}}
sync:
  mode: full
  batch_size: 1000
  rate_limit: {{requests_per_second: 100000}}
"""
PROFILE = """
bench:
  type: postgres
  host: {host}
  port: {port}
  dbname: {database}
  user: {user}
  password: {password}
"""

hive = urlsplit(os.environ["BENCH_HIVE"])
with tempfile.TemporaryDirectory() as folder:
    project, home = Path(folder) / "project", Path(folder) / "home"
    (project / "syncs").mkdir(parents=True)
    (home / ".drt").mkdir(parents=True)
    (project / "drt_project.yml").write_text('name: bench\nversion: "0.1"\nprofile: bench\n')
    (project / "syncs" / "leads.yml").write_text(SYNC.format(crm=os.environ["BENCH_CRM"]))
    (home / ".drt" / "profiles.yml").write_text(
        PROFILE.format(
            host=hive.hostname,
            port=hive.port,
            database=hive.path[1:],
            user=hive.username,
            password=hive.password or "x",
        )
    )
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [sys.argv[1], "run", "--select", "leads"],
        cwd=project,
        env={**environment, "HOME": str(home), "NO_COLOR": "1", "COLUMNS": "300"},
        capture_output=True,
        text=True,
        check=False,
    )
told = re.search(r"([\d,]+) synced", done.stdout)
if done.returncode or told is None:
    raise SystemExit(f"drt failed ({done.returncode}): {done.stdout[-1000:]}{done.stderr[-1000:]}")
print(json.dumps({"rows": int(told[1].replace(",", "")), "seconds": {}}))
