"""A failing seed made smaller: fewer kinds of faults, then fewer transactions, as long as it still fails.

What is drawn shifts when something is taken away, so a smaller run is another run that breaks the same rule.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from tests.simulation.faults import Fault
from tests.simulation.world import TRANSACTIONS, Result, run_seed

TRANSACTION_COUNTS: Final = (1, 2, 3, 5, 8, 13)


@dataclass(frozen=True, slots=True)
class Shrunk:
    """The smallest run that was found."""

    without: frozenset[Fault]
    transactions: int
    result: Result


def shrink(seed: int, found: Result, run: Callable[..., Result] = run_seed) -> Shrunk:
    """Take away whatever is not needed to break one of the same rules."""
    rules = {violation.rule for violation in found.violations}
    without: frozenset[Fault] = frozenset()
    transactions, best = TRANSACTIONS, found

    def fails(result: Result) -> bool:
        return any(violation.rule in rules for violation in result.violations)

    for fault in Fault:
        if fault not in found.fired:
            without |= {fault}
    for fault in Fault:
        if fault in without:
            continue
        tried = run(seed, without=without | {fault}, transactions=transactions)
        if fails(tried):
            without, best = without | {fault}, tried
    for fewer in TRANSACTION_COUNTS:
        tried = run(seed, without=without, transactions=fewer)
        if fails(tried):
            transactions, best = fewer, tried
            break
    best = run(seed, without=without, transactions=transactions, keeps_timeline=True)
    return Shrunk(without, transactions, best)
