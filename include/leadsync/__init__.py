"""Leadsync: keeps many CRM systems in step with the lead store of an advertising platform.

Read it in this order: `models`, `errors`, `config` (the pipeline file), `source` (what changed), `snapshot`
(kept in Redis), `mapping` and `load` (the heart: claim, send, settle), `state` (what the database remembers),
`crm` (one file per CRM), `operations` (the verbs of the DAGs) and `runtime` (the one module that knows Airflow).
"""
