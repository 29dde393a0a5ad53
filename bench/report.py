"""What the benchmarks print: one Markdown table, in which a goal that is not met says so."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """One line of the table; `met` is None where there is no goal."""

    what: str
    measured: str
    goal: str = ""
    met: bool | None = None


def table(title: str, rows: Sequence[Row]) -> str:
    """The table below its title, with what else weighed on the machine."""
    words = {None: "", True: "met", False: "**not met**"}
    machine = f"{os.cpu_count()} cores, load average {os.getloadavg()[0]:.1f}"
    lines = [f"\n{title} ({machine})\n", "| what | measured | goal | |", "| --- | --- | --- | --- |"]
    lines += [f"| {row.what} | {row.measured} | {row.goal} | {words[row.met]} |" for row in rows]
    return "\n".join(lines)
