"""The table of the fault suite."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

from faults.suite import Verdict

from vjepa2_hf.visualization.tables import format_table


@dataclasses.dataclass
class Row:
    """Cases of one fault: how many with one and with two processes, by script, and how many of them failed."""

    fault: str
    one: int = 0
    two: int = 0
    scripts: dict[str, int] = dataclasses.field(default_factory=dict)
    lost: int = 0
    differs: int = 0
    message: int = 0


def count(verdicts: Iterable[Verdict]) -> list[Row]:
    rows: dict[str, Row] = {}
    for verdict in verdicts:
        row = rows.setdefault(verdict.fault, Row(verdict.fault))
        row.one += verdict.ranks == 1
        row.two += verdict.ranks == 2
        row.scripts[verdict.job] = row.scripts.get(verdict.job, 0) + 1
        for kind in {kind for kind, _ in verdict.problems}:
            setattr(row, kind, getattr(row, kind) + 1)
    return sorted(rows.values(), key=lambda row: (-(row.one + row.two), row.fault))


def format_table_of(results: dict[str, Any]) -> str:
    """The table of `results/faults.json`."""
    titles = ("fault", "1 process", "2 processes", "work or files lost", "results differ", "no clear sentence")
    rows = [
        [row["fault"], *(str(row[name]) for name in ("one", "two", "lost", "differs", "message"))]
        for row in results["rows"]
    ]
    totals = [str(sum(row[name] for row in results["rows"])) for name in ("one", "two", "lost", "differs", "message")]
    lines = format_table(titles, [*rows, ["all", *totals]])
    scripts: dict[str, int] = {}
    for row in results["rows"]:
        for script, cases in row["scripts"].items():
            scripts[script] = scripts.get(script, 0) + cases
    listed = ", ".join(f"{script} {cases}" for script, cases in sorted(scripts.items(), key=lambda pair: -pair[1]))
    summary = (
        f"Cases by script: {listed}. Seed {results['seed']}; {results['minutes']} minutes on {results['cores']} cores."
    )
    return "\n".join([*lines, "", summary])
