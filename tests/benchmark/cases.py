"""The cases of a run: each is one figure that is measured again and again, in turn with all the others.

Interleaved, because a machine is never the same twice: A B C D A B C D, medians, and how far they spread.
"""

import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

from tests.benchmark.bare_sum import run_bare_sum
from tests.benchmark.contenders import AlreadyRunning, Ceiling, Contender, Holdfast, Textbook
from tests.benchmark.databases import CheckFailed, Databases
from tests.benchmark.drain import drain
from tests.benchmark.measuring import Shape, measure
from tests.benchmark.noop import Noop

CLIENTS = 64
CLIENTS_MANY = 1024
DEAD_SHARE = 0.05
OTHERS = {"dtm": "DTM", "restate": "Restate"}


@dataclass(kw_only=True)
class Case:
    """One thing to measure: `measure` is a round, `rounds` what the rounds came to (names → figures)."""

    name: str
    label: str
    clients: int
    measure: Callable[[], dict[str, Any]]
    rounds_max: int = 1_000
    """What takes minutes is not repeated as often as the others."""
    rounds: list[dict[str, Any]] = field(default_factory=list)

    def figures(self, figure: str) -> list[float]:
        """One figure of every round; none where it does not apply."""
        return [each[figure] for each in self.rounds if each.get(figure) is not None]

    def median(self, figure: str) -> float | None:
        found = self.figures(figure)
        return statistics.median(found) if found else None


@dataclass(frozen=True, kw_only=True)
class Duration:
    """How long a round is, in seconds."""

    seconds: float
    warmup_s: float


def main_cases(
    databases: Databases, participant: Noop, duration: Duration, unfinished: int, others: dict[str, str]
) -> list[Case]:
    """Every case of `make bench`, in the order of a round; `others` are running coordinators by name (name → URL)."""

    def load(name: str, label: str, contender: Contender, clients: int = CLIENTS, dead_share: float = 0.0) -> Case:
        return load_case(name, label, contender, participant, duration, clients=clients, dead_share=dead_share)

    bare_database = databases.postgres()

    def bare_sum() -> dict[str, Any]:
        return asdict(run_bare_sum(bare_database.url, participant.url, **asdict(duration)))

    def on_postgres(processes: int = 1) -> Holdfast:
        database = databases.postgres()
        database.migrate()
        return Holdfast(database, processes=processes)

    return [
        load("ceiling", "Holdfast, nothing persisted (ceiling)", Ceiling()),
        load("postgres-1", "Holdfast, PostgreSQL, 1 process", on_postgres()),
        load("postgres-2", "Holdfast, PostgreSQL, 2 processes", on_postgres(2)),
        load("sqlite", "Holdfast, SQLite", Holdfast(databases.sqlite())),
        load("textbook", "Textbook coordinator, PostgreSQL", Textbook(databases.postgres())),
        *(
            load(name, f"{OTHERS[name]}, already running", AlreadyRunning(url, f"tests.benchmark.{name}_client"))
            for name, url in others.items()
        ),
        load("one-client", "Holdfast, PostgreSQL, 1 client", on_postgres(), clients=1),
        Case(name="bare-sum", label="2 pairs of calls and 2 commits, bare", clients=1, measure=bare_sum),
        load("many-clients", "Holdfast, PostgreSQL, 1,024 clients", on_postgres(), clients=CLIENTS_MANY),
        load("dead-participant", "Holdfast, PostgreSQL, 5 % dead", on_postgres(), dead_share=DEAD_SHARE),
        Case(
            name="drain",
            label=f"{unfinished:,} unfinished found at start",
            clients=0,
            measure=lambda: drain(databases, participant, unfinished),
            rounds_max=1,
        ),
    ]


def load_case(
    name: str,
    label: str,
    contender: Contender,
    participant: Noop,
    duration: Duration,
    *,
    clients: int = CLIENTS,
    dead_share: float = 0.0,
) -> Case:
    """A contender under load."""
    shape = Shape(clients=clients, seconds=duration.seconds, warmup_s=duration.warmup_s, dead_share=dead_share)
    return Case(name=name, label=label, clients=clients, measure=lambda: asdict(measure(contender, participant, shape)))


def run(cases: list[Case], rounds: int) -> None:
    """Measure all, in turn, so many times. Raises CheckFailed at the first round whose figures can't be trusted."""
    for number in range(1, rounds + 1):
        for case in [each for each in cases if number <= each.rounds_max]:
            began = time.monotonic()
            try:
                measured = case.measure()
            except CheckFailed as failed:
                raise CheckFailed(f"{case.name}, round {number}: {failed}") from failed
            case.rounds.append(measured)
            _tell(f"round {number} {case.name} ({time.monotonic() - began:.0f} s)", measured)


def _tell(what: str, measured: dict[str, Any]) -> None:
    shown = " ".join(f"{figure}={value:.4g}" for figure, value in measured.items() if value is not None)
    print(f"{what}: {shown}", file=sys.stderr, flush=True)
