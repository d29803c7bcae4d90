"""This code against another checkout of Holdfast: ratios of CPU, throughput and latency.

    make bench ARGS='--against ../before'                       # a folder that `git worktree add` made
    make bench ARGS='--against ../before --case postgres --rounds 20'

The other checkout is only ever run: its own `python -m app migrate` and `serve`, by this interpreter, with a database
of its own. Load, participants and checks are this checkout's, the same for both.

In a round both are started anew and warmed up, and then take turns, A B B A A B B A, in the next round B A A B B A A B:
so many transactions each, from rest to rest. So what makes the machine slower for some seconds, or what comes first,
weighs on both; no CPU is missed or counted twice; and each round has a ratio of its own.
"""

import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Final

from tests.benchmark.checkout import THIS, Checkout
from tests.benchmark.contenders import Contender, Holdfast, KeyedHoldfast
from tests.benchmark.databases import Database, Databases
from tests.benchmark.noop import Noop
from tests.benchmark.paced_clients import PacedClients, Plan
from tests.benchmark.ratios import ratio
from tests.benchmark.report import markdown
from tests.benchmark.side import Side

FIGURES: Final = (
    ("CPU ms/tx", "cpu_ms"),
    ("tx/s", "throughput_per_s"),
    ("p50 ms", "p50_ms"),
    ("/healthz p50 ms", "healthz_p50_ms"),
    ("/healthz p90 ms", "healthz_p90_ms"),
    ("database CPU ms/tx", "database_cpu_ms"),
    ("peak MB", "rss_peak_mb"),
)
TURNS: Final = "ABBAABBA"
WARM_UP_TURNS: Final = 2
"""A new process needs half as much again for its first few hundred transactions."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One kind of load, for both sides: where the data is, what coordinates, and what the clients do.

    To add one: a row in COMPARISONS; a new `driver` (see holdfast_client.py) for other transactions; a subclass with
    another `contender` where more than the coordinator comes from the checkout.
    """

    name: str
    database: Callable[[Databases], Database]
    clients: int
    transactions: int
    """In a turn; several for each client, so that most of a turn is not its beginning or its end."""
    driver: str = "tests.benchmark.holdfast_client"

    def contender(self, database: Database, checkout: Checkout) -> Contender:
        return Holdfast(database, checkout=checkout, driver=self.driver)


@dataclass(frozen=True, kw_only=True)
class Guarded(Comparison):
    """What keys and signatures cost: this checkout with them, and the other without. Compare it with itself."""

    def contender(self, database: Database, checkout: Checkout) -> Contender:
        kind = KeyedHoldfast if checkout is THIS else Holdfast
        return kind(database, checkout=checkout, driver=self.driver)


COMPARISONS: Final = (
    Comparison(name="sqlite", database=Databases.sqlite, clients=64, transactions=320),
    Comparison(name="postgres", database=Databases.postgres, clients=64, transactions=320),
    Guarded(name="guarded", database=Databases.postgres, clients=64, transactions=320),
    Comparison(  # payloads and results of 64 KiB
        name="large",
        database=Databases.postgres,
        clients=8,
        transactions=40,
        driver="tests.benchmark.large_client",
    ),
    Comparison(name="few", database=Databases.sqlite, clients=4, transactions=120),
    Comparison(  # bodies of 1 MiB; compare its /healthz with that of "few"
        name="megabyte",
        database=Databases.sqlite,
        clients=4,
        transactions=12,
        driver="tests.benchmark.megabyte_client",
    ),
)


class CannotRun(Exception):
    """A checkout's code does not start, or does not migrate its database."""


@dataclass
class Compared:
    """The figures of each round, by name, of both sides."""

    name: str
    these: list[dict[str, float]] = field(default_factory=list)
    others: list[dict[str, float]] = field(default_factory=list)

    def add(self, this: Side, other: Side) -> None:
        self.these.append(this.figures())
        self.others.append(other.figures())

    def values(self, figure: str) -> tuple[list[float], list[float]]:
        return [each[figure] for each in self.these], [each[figure] for each in self.others]


def compare(
    comparisons: Sequence[Comparison],
    other: Checkout,
    databases: Databases,
    participant: Noop,
    *,
    rounds: int,
    transactions: int | None = None,
) -> list[Compared]:
    """So many rounds of each. Raises CheckFailed at the first turn that can't be trusted, CannotRun before."""
    compared = {each: Compared(each.name) for each in comparisons}
    for number in range(1, rounds + 1):
        for comparison, results in compared.items():
            with ExitStack() as stack:
                in_order = (THIS, other) if number % 2 else (other, THIS)
                first, second = (
                    stack.enter_context(_started(comparison, checkout, databases, participant)) for checkout in in_order
                )
                _take_turns(first, second, transactions or comparison.transactions)
                results.add(*((first, second) if number % 2 else (second, first)))
            _tell(f"round {number} of {rounds}, {comparison.name}", results)
    return list(compared.values())


def report(compared: Sequence[Compared], other: Checkout) -> str:
    """A table for people: the medians of both sides, and of their ratios."""
    rows = [["case", "figure", "this", "other", "this / other", "least to most", "95 % sure"]]
    for each in compared:
        for title, figure in FIGURES:
            if figure not in each.these[0]:
                continue
            these, others = each.values(figure)
            found = ratio(these, others)
            sure = "too few rounds" if found.sure is None else f"{found.sure[0]:.3f} to {found.sure[1]:.3f}"
            medians = [f"{statistics.median(values):.4g}" for values in (these, others)]
            spread = f"{found.least:.3f} to {found.most:.3f}"
            rows.append([each.name, title, *medians, f"{found.median:.3f}", spread, sure])
    rounds = len(compared[0].these)
    return "\n".join([f"this: {THIS.label}; other: {other.label}; rounds: {rounds}", "", *markdown(rows)])


# --- a round ------------------------------------------------------------------------------------------------------


@contextmanager
def _started(comparison: Comparison, checkout: Checkout, databases: Databases, participant: Noop) -> Iterator[Side]:
    """A side with an empty database."""
    database = comparison.database(databases)
    contender = comparison.contender(database, checkout)
    with ExitStack() as stack:
        stack.callback(databases.drop, database)
        try:
            database.migrate(checkout)
            running = stack.enter_context(contender.start(participant))
        except RuntimeError as error:
            raise CannotRun(f"{checkout.label} can't be run: {error}\n{_advice(str(error))}".rstrip()) from error
        plan = Plan(
            url=running.urls[0],
            participant_url=participant.url,
            clients=comparison.clients,
            driver=running.driver,
            key=running.key,
        )
        clients = stack.enter_context(PacedClients(plan))
        yield Side(checkout.label, contender, running, clients, participant)


def _advice(message: str) -> str:
    if "ModuleNotFoundError" in message:
        return (
            "It needs a package that this checkout does not. Both sides run with this checkout's packages, so that "
            "these make no difference: install the missing one beside them."
        )
    return ""


def _take_turns(first: Side, second: Side, transactions: int) -> None:
    for _ in range(WARM_UP_TURNS):
        first.warm_up(transactions)
        second.warm_up(transactions)
    for turn in TURNS:
        (first if turn == "A" else second).turn(transactions)


def _tell(what: str, compared: Compared) -> None:
    these, others = compared.these[-1], compared.others[-1]
    shown = " ".join(f"{figure}={value / others[figure]:.3f}" for figure, value in these.items())
    print(f"{what}, this / other: {shown}", file=sys.stderr, flush=True)
