"""What a run of many seeds says: figures, counters, and failing seeds with a timeline."""

from collections import Counter
from typing import Final

from holdfast.wire import Kind
from tests.simulation.faults import Branch, Fault
from tests.simulation.shrink import Shrunk
from tests.simulation.world import Result

BEGUN: Final = (Kind.TCC,)
"""The kinds that clients begin."""
MUST_FIRE_FROM: Final = 500
"""A run of so many seeds in which a fault, a branch or a kind was never met has not tested it, and fails."""
TIMELINE_LINES_MAX: Final = 400


def table(fired: Counter[str]) -> list[str]:
    """Each kind of fault, each rare branch and each kind of branch, and how often it was met."""
    lines = []
    for title, names in (("faults", Fault), ("branches", Branch), ("kinds begun", BEGUN)):
        lines.append(f"  {title}")
        lines += [f"    {fired[name]:>9,}  {name}" for name in names]
    return lines


def never_met(fired: Counter[str], seeds: int) -> list[str]:
    """What should have been met in so many seeds and was not."""
    if seeds < MUST_FIRE_FROM:
        return []
    return [name for name in (*Fault, *Branch, *BEGUN) if not fired[name]]


def failure(result: Result, shrunk: Shrunk) -> list[str]:
    """A failing seed: what is wrong, how to see it again, and what happened."""
    lines = [f"seed {result.seed} FAILED; replay: make sim SEED={result.seed}"]
    lines += [
        f"  {violation.rule}: {violation.what} {violation.transaction_id or ''}" for violation in result.violations
    ]
    kinds = ", ".join(sorted(fault for fault in shrunk.result.fired if fault in set(Fault))) or "none"
    lines.append(f"  smaller: {shrunk.transactions} transactions, faults: {kinds}")
    lines += [
        f"    {violation.rule}: {violation.what} {violation.transaction_id or ''}"
        for violation in shrunk.result.violations
    ]
    lines += [f"    {line}" for line in shrunk.result.timeline[:TIMELINE_LINES_MAX]]
    return lines
