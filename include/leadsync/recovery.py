"""The tasks of the DAGs `leadsync_replay` and `leadsync_recover`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from leadsync import recover, replay, runtime
from leadsync.config import load_pipeline
from leadsync.errors import RefusedAgain, SnapshotError


def choose_letters(context: runtime.Context) -> list[dict[str, Any]]:
    """What is to be replayed, an item per destination: as asked for or, by the schedule, what is marked as mended."""
    run = context["dag_run"]
    if run.run_type == "scheduled":
        with runtime.state_database() as state:
            found = replay.marked(state, runtime.known_pipelines())
    else:
        pipeline, conf = runtime.asked(run)
        with runtime.clients(pipeline) as using:
            found = replay.choose(using.state, pipeline, conf, run.triggering_user_name)
        if conf.get("mended"):
            return found
    if not found:
        raise runtime.Skip("nothing to do: there is no such open dead letter")
    return found


def replay_letters(item: Mapping[str, Any], context: Any) -> dict[str, int]:
    """Replays one item and returns the counts."""
    return _redeliver(replay, item, context)


def choose_snapshots(context: runtime.Context) -> list[dict[str, Any]]:
    """What is to be recovered, an item per destination."""
    pipeline, conf = runtime.asked(context["dag_run"])
    with runtime.clients(pipeline, again=recover.AGAIN) as using:
        return recover.choose(using, pipeline, conf)


def recover_snapshots(item: Mapping[str, Any], context: Any) -> dict[str, int]:
    """Recovers one item and returns the counts."""
    return _redeliver(recover, item, context)


def _redeliver(verb: Any, item: Mapping[str, Any], context: Any) -> dict[str, int]:
    """What stands out goes into the label, also a failure that is a result."""
    run, destination = context["dag_run"], item["destination"]
    pipeline = load_pipeline(runtime.PIPELINES / f"{item['pipeline']}.yaml")
    with runtime.clients(pipeline, again=verb.AGAIN) as using:
        try:
            counts: dict[str, int] = verb.run(using, pipeline, run.run_id, item, run.triggering_user_name)
        except (RefusedAgain, SnapshotError) as error:
            head = str(error).partition(";")[0].removeprefix(f"{destination}: ")
            context["label"] = f"{destination}: {head}"[: runtime.LONGEST_LABEL]
            raise
    told = [f"{counts[name]} of {counts['read']} {word}" for name, word in verb.STANDS_OUT.items() if counts[name]]
    if told:
        context["label"] = f"{destination}: {', '.join(told)}"
    return counts
