"""What a run says: tables for people, and JSON. No path and no name of the machine is in either."""

import json
import os
import platform
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from tests.benchmark.cases import Case
from tests.benchmark.goals import Verdict

_COLUMNS: Final = (
    ("tx/s", "throughput_per_s", ".0f"),
    ("p50 ms", "p50_ms", ".1f"),
    ("p99 ms", "p99_ms", ".1f"),
    ("CPU ms/tx", "cpu_ms", ".2f"),
    ("database CPU ms/tx", "database_cpu_ms", ".2f"),
    ("peak MB", "rss_peak_mb", ".0f"),
)
_SHOWN_ELSEWHERE: Final = {"confirmed", "cancelled"}


@dataclass(frozen=True, kw_only=True)
class Machine:
    """On what it was measured."""

    cores: int
    processor: str
    python: str
    postgresql: str
    participant: str
    rounds: int
    seconds: float


def machine(*, postgresql: str, participant: str, rounds: int, seconds: float) -> Machine:
    return Machine(
        cores=len(os.sched_getaffinity(0)),
        processor=_processor(),
        python=platform.python_version(),
        postgresql=postgresql,
        participant=participant,
        rounds=rounds,
        seconds=seconds,
    )


def table(cases: list[Case]) -> str:
    """Medians, and in brackets the least and the most."""
    measured = [case for case in cases if case.figures("throughput_per_s")]
    rows = [["case", "clients", *(title for title, _, _ in _COLUMNS)]]
    rows += [
        [case.label, f"{case.clients:,}", *(_cell(case, figure, digits) for _, figure, digits in _COLUMNS)]
        for case in measured
    ]
    return "\n".join([*markdown(rows), *_others([case for case in cases if case not in measured])])


def goals_table(verdicts: list[Verdict]) -> str:
    """Each goal with what was measured, and met or missed; those that this run could not judge by name."""
    rows = [["goal", "wanted", "measured", ""]]
    for verdict in verdicts:
        if verdict.measured is not None:
            measured = f"{verdict.measured:.3g}{verdict.goal.unit}"
            rows.append([verdict.goal.text, verdict.wanted, measured, "met" if verdict.met else "missed"])
    left = [verdict.goal.text for verdict in verdicts if verdict.measured is None]
    return "\n".join([*markdown(rows), *(["Not measured in this run: " + "; ".join(left) + "."] if left else [])])


def markdown(rows: list[list[str]]) -> list[str]:
    """The lines of a table; its first row is the head."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows
    ]
    return [lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]]


def write_json(path: Path, about: Machine, cases: list[Case], verdicts: list[Verdict]) -> None:
    """Everything that was measured, round by round."""
    document = {
        "measured_on": datetime.now(UTC).date().isoformat(),
        "machine": about.__dict__,
        "cases": {
            case.name: {"label": case.label, "clients": case.clients, "median": _medians(case), "rounds": case.rounds}
            for case in cases
        },
        "goals": [
            {"goal": each.goal.text, "wanted": each.wanted, "measured": each.measured, "met": each.met}
            for each in verdicts
        ],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(_rounded(document), indent=1, ensure_ascii=False) + "\n")


def _medians(case: Case) -> dict[str, float | None]:
    return {figure: case.median(figure) for figure in case.rounds[0]} if case.rounds else {}


def _cell(case: Case, figure: str, digits: str) -> str:
    found = case.figures(figure)
    if not found:
        return ""
    spread = f" ({min(found):{digits}} to {max(found):{digits}})" if len(found) > 1 else ""
    return f"{case.median(figure):{digits}}{spread}"


def _others(cases: list[Case]) -> Iterator[str]:
    for case in cases:
        figures = [name for name in case.rounds[0] if name not in _SHOWN_ELSEWHERE] if case.rounds else []
        yield f"{case.label}: " + ", ".join(f"{name} {_cell(case, name, '.4g')}" for name in figures)


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, dict):
        return {key: _rounded(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_rounded(each) for each in value]
    return value
