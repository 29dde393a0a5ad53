"""Airflow imports this in every process as it starts. Whoever runs tasks or reads DAG files does so in forks of itself:
what is imported here, each of them finds imported, and has not to spend its own time on it.
"""

import sys

__all__: list[str] = []  # no setting of Airflow is changed

# The scheduler forks the tasks of the LocalExecutor, `airflow celery worker` those of Celery, the DAG processor one for
# each DAG file every few seconds.
if {"scheduler", "worker", "dag-processor"} & set(sys.argv[1:3]):
    import requests  # noqa: F401
    from airflow.providers.standard.decorators import python  # noqa: F401

    from leadsync import alerting, reconciling, recovery, upkeep, watcher  # noqa: F401
    from leadsync.crm import registry

    registry.adapter_names()
