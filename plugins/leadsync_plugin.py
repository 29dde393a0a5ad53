"""Airflow's side of Leadsync's page: for now a link in the navigation to the pipelines."""

from __future__ import annotations

from airflow.plugins_manager import AirflowPlugin


class LeadsyncPlugin(AirflowPlugin):
    name = "leadsync"
    external_views = [
        {"name": "Leadsync", "href": "/dags?tags=leadsync", "destination": "nav"},
    ]
