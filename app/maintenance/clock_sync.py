"""Has the coordinator's clock follow the database's, and says when the two, or the machine's, disagree.

On SQLite, which one process has to itself, the machine's clock takes the place of the database's. How a clock follows
another is in app/clock.py.
"""

import logging
from collections.abc import Awaitable, Callable
from typing import Final

from app.background import RepeatingTask
from app.clock import Clock, DatabaseClock, MachineClock, Sample, elapsed_s, wall_s
from app.metrics import Metrics
from app.storage import database_clock
from app.storage.errors import DatabaseError
from app.storage.group_commit import Journal

log = logging.getLogger(__name__)

PAUSE_S: Final = 1.0
"""Pause between two looks at the database's clock, in seconds.

After its machine stood still a replica may be behind until the next one. Nothing is confirmed too late meanwhile:
the database refuses it."""
FIRST_SAMPLES: Final = 5
"""Number of questions at the start, of which the quickest answer counts."""
OFF_S: Final = 1.0
"""A difference of this many seconds is worth a line in the log."""
STOP_MAX_S: Final = 2.0

Ask = Callable[[], Awaitable[Sample]]


def asks_the_database(journal: Journal, elapsed: Callable[[], float] = elapsed_s) -> Ask:
    """Asks the database for its time."""
    return lambda: journal.read(database_clock.ask, elapsed)


def asks_the_machine(wall: Callable[[], float], elapsed: Callable[[], float] = elapsed_s) -> Ask:
    """Looks at the machine's clock."""

    async def ask() -> Sample:
        now = elapsed()
        return Sample(time=wall(), asked_at=now, answered_at=now)

    return ask


async def start_clock(ask: Ask, elapsed: Callable[[], float] = elapsed_s) -> DatabaseClock:
    """A clock that has the database's time. Raises DatabaseError: without it no clock can be trusted."""
    clock = DatabaseClock.started(await ask(), elapsed=elapsed)
    for _ in range(FIRST_SAMPLES - 1):
        clock.follow(await ask())
    return clock


async def clock_of(journal: Journal, *, follows_machine: bool, wall: Callable[[], float] = wall_s) -> Clock:
    """The clock of a process that uses this database: the database's, or the machine's where there is no server."""
    return MachineClock(wall) if follows_machine else await start_clock(asks_the_database(journal))


class ClockSync:
    """Has `clock` follow what `ask` asks, until it is stopped. `wall` is the machine's clock, for comparison."""

    def __init__(
        self,
        *,
        clock: Clock,
        ask: Ask,
        metrics: Metrics,
        wall: Callable[[], float],
    ) -> None:
        self._clock = clock
        self._ask = ask
        self._metrics = metrics
        self._wall = wall
        self._said_off_s = self._said_ahead_s = 0.0
        self.task: Final = RepeatingTask("clock", self._round, failure_pause_s=PAUSE_S, stop_max_s=STOP_MAX_S)

    async def start(self) -> None:
        await self.task.start()

    async def stop(self) -> None:
        await self.task.stop()

    async def check(self) -> float:
        """Follow once. Returns a time that has surely come, whichever clock is wrong: things may be deleted by it.

        Raises DatabaseError.
        """
        sample = await self._ask()
        ahead_s = self._clock.follow(sample)
        self._tell(ahead_s)
        return min(sample.time, self._clock(), self._clock.steady())

    async def _round(self) -> float:
        try:
            await self.check()
        except DatabaseError as error:
            log.debug("event=clock_unchecked error=%s The clock goes on by itself.", error.kind)
        return PAUSE_S

    def _tell(self, ahead_s: float) -> None:
        """`ahead_s` is what the coordinator's clock was ahead of the one that it follows, or behind if negative."""
        off_s = self._wall() - self._clock() + max(0.0, ahead_s)
        self._metrics.clock_ahead.labels("machine").set(off_s)
        self._metrics.clock_ahead.labels("coordinator").set(ahead_s)
        if ahead_s <= -OFF_S:
            log.warning(
                "event=clock_moved by_s=%.1f The coordinator's clock was behind: the machine stood still, or a clock "
                "was set.",
                -ahead_s,
            )
        if abs(ahead_s - self._said_ahead_s) >= OFF_S and ahead_s >= 0:
            self._said_ahead_s = ahead_s
            log.warning(
                "event=clock_ahead by_s=%.1f The clock that the coordinator follows was set back. Its own goes slower "
                "until the other has caught up; a restart takes over the new time.",
                ahead_s,
            )
        if isinstance(self._clock, DatabaseClock) and abs(off_s - self._said_off_s) >= OFF_S:
            self._said_off_s = off_s
            log.warning(
                "event=clock_off by_s=%.1f The machine's clock is ahead of the database's by so much (behind, if "
                "negative). The coordinator goes by the database's.",
                off_s,
            )
