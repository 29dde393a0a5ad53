"""Shows the Leadsync page in Airflow's UI, behind its login and with its permissions.

Plugins are loaded by every process of Airflow, tasks too; so everything heavy is imported only by the API server, when
it asks for `fastapi_apps`.
"""

from typing import Any

from airflow.plugins_manager import AirflowPlugin


def _app() -> Any:
    from airflow.api_fastapi.app import get_auth_manager
    from airflow.api_fastapi.auth.managers.models.resource_details import DagDetails
    from airflow.api_fastapi.core_api.security import get_user
    from airflow.configuration import conf
    from airflow.models.dag import DagModel
    from fastapi import Depends

    from leadsync import page

    def authenticate(user: Any = Depends(get_user)) -> page.User:  # noqa: B008 FastAPI's way
        def may(method: Any, dag_id: str) -> bool:
            team = DagModel.get_team_name(dag_id) if conf.getboolean("core", "multi_team") else None
            details = DagDetails(id=dag_id, team_name=team)
            return get_auth_manager().is_authorized_dag(method=method, details=details, user=user)

        return page.User(user.get_name(), may)

    return page.make(authenticate)


class LeadsyncPage(AirflowPlugin):
    name = "leadsync"
    external_views = [
        {
            "name": "Leadsync",
            "href": "leadsync/",
            "destination": "nav",
            "url_route": "leadsync",
            "nav_top_level": True,
        }
    ]

    @property
    def fastapi_apps(self) -> list[Any]:
        return [{"app": _app(), "url_prefix": "/leadsync", "name": "Leadsync"}]
