"""Ratios of figures that were measured in pairs: the median of the rounds, and how far it is to be trusted."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

CONFIDENCE: Final = 0.95


@dataclass(frozen=True, kw_only=True)
class Ratio:
    """The ratios of the rounds."""

    median: float
    least: float
    most: float
    sure: tuple[float, float] | None
    """In 95 of 100 runs the true median is in here; None: too few rounds to say."""


def ratio(these: Sequence[float], others: Sequence[float]) -> Ratio:
    """These against the others, round by round: what slows the machine down for a round slows both."""
    ordered = sorted(this / other for this, other in zip(these, others, strict=True))
    outside = _outside(len(ordered))
    return Ratio(
        median=statistics.median(ordered),
        least=ordered[0],
        most=ordered[-1],
        sure=None if outside is None else (ordered[outside], ordered[-1 - outside]),
    )


def _outside(count: int) -> int | None:
    """How many of so many values, in order, lie on each side of the interval that has the median of all possible ones.

    Each value is above that median with probability ½, whatever the distribution; so the number above is binomial, and
    no outlier moves the interval.
    """
    below = 0.0
    for outside in range(count):
        below += math.comb(count, outside) / 2**count
        if below > (1 - CONFIDENCE) / 2:
            return outside - 1 if outside else None
    return None
