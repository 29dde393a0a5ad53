"""The spans of a run, as a real task of Airflow's exports them."""

from __future__ import annotations

from tests.e2e.conftest import Airflow
from tests.support.collector import Collector, Exported


def test_a_run_is_one_trace_down_to_the_batches(airflow: Airflow, collector: Collector) -> None:
    airflow.hive.execute(
        "INSERT INTO customer (appkey, uid, name, phone) "
        "SELECT 'TRACED', n, 'Traced by name', '+8613900' || n FROM generate_series(1, 250) n"
    )
    run_id = airflow.run()

    def of_the_run() -> dict[str, Exported]:
        """Airflow's spans of the tasks, by their ids."""
        ours = {"airflow.dag_run.run_id": run_id, "airflow.dag_id": airflow.dag}
        return {span.id: span for span in collector.spans if ours.items() <= span.attributes.items()}

    def below(name: str, parents: dict[str, Exported]) -> dict[str, Exported]:
        return {span.id: span for span in collector.spans if span.name == name and span.parent in parents}

    airflow.until(lambda: len(below("leadsync.load", of_the_run())) == 2, "no spans of the loads", seconds=30)
    tasks, loads = of_the_run(), below("leadsync.load", of_the_run())
    snapshots, batches = below("leadsync.snapshot", tasks), below("leadsync.batch", loads)
    assert [tasks[span.parent].name for span in snapshots.values()] == ["worker.snapshot"]
    assert {tasks[span.parent].name for span in loads.values()} == {"worker.load[0]", "worker.load[1]"}
    delivered = {
        span.attributes["leadsync.destination"]: span.attributes["leadsync.delivered"] for span in loads.values()
    }
    assert delivered == {"hubspot": 250, "salesforce": 250}
    created = [span.attributes["leadsync.created"] for span in batches.values()]
    assert sum(created) == 500
    assert len({span.trace for span in (*tasks.values(), *snapshots.values(), *loads.values(), *batches.values())}) == 1
    assert not [body for body in collector.received if b"Traced by name" in body or b"+8613900" in body]
