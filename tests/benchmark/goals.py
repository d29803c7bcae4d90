"""The goals, as ratios of figures of one run. What was not measured in a run has no verdict."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from tests.benchmark.cases import Case


@dataclass(frozen=True)
class Goal:
    """What is wanted; `ratio` of the run's cases, which may lack one."""

    text: str
    limit: float
    at_least: bool
    ratio: Callable[["Figures"], float]
    unit: str = ""


@dataclass(frozen=True)
class Verdict:
    goal: Goal
    measured: float | None

    @property
    def met(self) -> bool | None:
        if self.measured is None:
            return None
        return self.measured >= self.goal.limit if self.goal.at_least else self.measured <= self.goal.limit

    @property
    def wanted(self) -> str:
        return f"{'≥' if self.goal.at_least else '≤'} {self.goal.limit:g}{self.goal.unit}"


class Figures:
    """Medians by case. Raises KeyError for what this run has not."""

    def __init__(self, cases: Mapping[str, Case]) -> None:
        self._cases = cases

    def __call__(self, case: str, figure: str) -> float:
        median = self._cases[case].median(figure)
        if median is None:
            raise KeyError(figure)
        return median

    def ratio(self, case: str, figure: str, to: str) -> float:
        return self(case, figure) / self(to, figure)


_SPEED: Final = "throughput_per_s"

GOALS: Final = (
    Goal("throughput, PostgreSQL, against the ceiling", 0.6, True, lambda f: f.ratio("postgres-1", _SPEED, "ceiling")),
    Goal(
        "throughput, PostgreSQL, against the textbook coordinator",
        20,
        True,
        lambda f: f.ratio("postgres-1", _SPEED, "textbook"),
    ),
    Goal("throughput, PostgreSQL, against DTM", 2, True, lambda f: f.ratio("postgres-1", _SPEED, "dtm")),
    Goal("throughput, PostgreSQL, against Restate", 2, True, lambda f: f.ratio("postgres-1", _SPEED, "restate")),
    Goal("CPU a transaction, against the ceiling's", 1.6, False, lambda f: f.ratio("postgres-1", "cpu_ms", "ceiling")),
    Goal(
        "CPU a transaction at 1,024 clients, against 64",
        1.3,
        False,
        lambda f: f.ratio("many-clients", "cpu_ms", "postgres-1"),
    ),
    Goal(
        "one client: p50 against the bare sum of 2 calls and 2 commits",
        1.7,
        False,
        lambda f: f("one-client", "p50_ms") / f("bare-sum", "whole_ms"),
    ),
    Goal("p99 against p50, 64 clients", 3, False, lambda f: f("postgres-1", "p99_ms") / f("postgres-1", "p50_ms")),
    Goal(
        "one dead participant in 5 %: throughput of the others, against healthy",
        0.95,
        True,
        lambda f: f.ratio("dead-participant", _SPEED, "postgres-1"),
    ),
    Goal(
        "unfinished at start: drained at, against normal throughput",
        0.7,
        True,
        lambda f: f("drain", "drained_per_s") / f("postgres-1", _SPEED),
    ),
    Goal("unfinished at start: peak memory", 400, False, lambda f: f("drain", "rss_peak_mb"), " MB"),
    Goal(
        "throughput with finished rows, against an empty database",
        0.9,
        True,
        lambda f: f.ratio("size-full", _SPEED, "size-empty"),
    ),
    Goal(
        "hung list, first page of 1,000, against an empty database's",
        2,
        False,
        lambda f: f.ratio("hung-full", "first_page_ms", "hung-empty"),
    ),
    Goal(
        "hung list, first page, against the same 1,000 hung and nothing else",
        2,
        False,
        lambda f: f.ratio("hung-full", "first_page_ms", "hung-alone"),
    ),
    Goal(
        "hung list, thousandth page, against the same 1,000 hung and nothing else",
        2,
        False,
        lambda f: f.ratio("hung-full", "thousandth_page_ms", "hung-alone"),
    ),
)


def judge(cases: list[Case]) -> list[Verdict]:
    """What became of each goal in this run; measured is None where its cases did not run."""
    figures = Figures({case.name: case for case in cases})
    return [Verdict(goal, _ratio(goal, figures)) for goal in GOALS]


def _ratio(goal: Goal, figures: Figures) -> float | None:
    try:
        return goal.ratio(figures)
    except KeyError:
        return None
