"""A random model of the sync protocol: pure Python, no servers, one tick of the clock at a time.

Read it in this order: `protocol` (the rules, and the tasks of a run), `load` (claim, send, settle), `database` (what
Leadsync remembers), `world` (lead store, CRMs, network), `airflow` (who starts, retries, kills and clears tasks),
`walk` (one random history), `checks` (the promises). `python -m tests.model` walks many histories.
"""
