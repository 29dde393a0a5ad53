"""Airflow imports this in every process as it starts. Whoever runs tasks makes them by forking: what is imported here,
each of them finds imported, and has not to spend its own time on it.
"""

import sys

__all__: list[str] = []  # no setting of Airflow is changed

# The scheduler forks the tasks of the LocalExecutor, `airflow celery worker` those of Celery.
if {"scheduler", "worker"} & set(sys.argv[1:3]):
    from leadsync import runtime  # noqa: F401
