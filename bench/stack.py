"""A whole stack for a benchmark: real Airflow, PostgreSQL, Valkey and both simulated CRMs, as `make up` starts them."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from demo.stack import ports
from demo.stack.stack import Stack

ROOT = Path(__file__).parents[1]


@contextmanager
def running_stack(
    change: Callable[[dict[str, Any]], object],
    *,
    environment: Mapping[str, str] | None = None,
    more_dags: Sequence[Path] = (),
) -> Iterator[Stack]:
    """On free ports, in a folder that is thrown away. `change` gets the shipped pipeline file, to change it;
    `environment` is added to that of Airflow's processes, and `more_dags` are files beside the shipped ones.
    """
    with tempfile.TemporaryDirectory(prefix="leadsync-bench-") as folder:
        pipelines = Path(folder) / "pipelines"
        pipelines.mkdir()
        dags = Path(folder) / "dags"
        shutil.copytree(ROOT / "dags", dags, ignore=shutil.ignore_patterns("__pycache__"))
        for path in more_dags:
            shutil.copy(path, dags)
        pipeline = yaml.safe_load((ROOT / "include" / "pipelines" / "leads.yaml").read_text())
        for target in pipeline["destinations"].values():
            target["settings"] = {"requests_per_second": 1000}  # of the real CRMs' limits there is no need here
        change(pipeline)
        (pipelines / "leads.yaml").write_text(yaml.safe_dump(pipeline))
        stack = Stack(
            Path(folder) / "state",
            ports.free_base(20_000 + os.getpid() * 20 % 10_000),
            ROOT,
            generator=False,
            dags_folder=dags,
            dag="leads_sync",
            environment={"LEADSYNC_PIPELINES": str(pipelines), **(environment or {})},
        )
        try:
            stack.up(lambda line: print(line, flush=True))
            yield stack
        finally:
            stack.clean()
