"""Claims due transactions and starts a run for each: those that rest, and those whose process died.

The two are alike: a crash is only a longer pause between two steps. Any number of replicas can run this, because a
claim is one conditional write. A participant that keeps its callers waiting gets a limited share of the places: further
transactions that need it next are postponed by a lease, so that others come first. Doesn't advance transactions itself.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from app.background import RepeatingTask
from app.calling.registry import Registry
from app.engine.memory_budget import MemoryBudget
from app.engine.run import Place, Run, take_over
from app.engine.runs import Runs
from app.protocol.steps import awaited
from app.protocol.values import Transaction
from app.storage import transactions
from app.storage.errors import DatabaseError
from app.storage.expressions import READ_BYTES_MAX
from app.storage.group_commit import Journal

log = logging.getLogger(__name__)

BATCH_MAX: Final = 100
"""Maximum number of transactions in a claim."""
PARALLEL_MAX: Final = 1000
"""Claiming pauses while this many recently claimed transactions are in progress; hung ones are counted separately."""
SLOW_AFTER_S: Final = 1.0
"""After this long a claimed transaction counts as slow and gives its place to the next, …"""
SLOW_MAX: Final = 64
"""… but while a participant has this many slow ones, its others are postponed."""
ADOPTED_MAX: Final = 4000
"""Maximum number of claimed transactions in progress, slow ones included; hung ones are counted separately."""
PAUSE_MAX_S: Final = 1.0
"""Longest pause between two claims, in seconds: another replica's work may become due at any time."""
STOP_MAX_S: Final = 2.0
"""How long a claim in progress may take when the process stops, in seconds."""
PAUSE_MIN_S: Final = 0.02


@dataclass(slots=True, kw_only=True)
class _Adopted:
    """A claimed transaction in progress, as it stood when recovery last looked.

    `place` is where it counts: it may become hung after the claim.
    """

    since: float
    place: Place
    seen: Transaction
    waits_for: frozenset[str]

    def look(self, run: Run) -> None:
        """See how far it has got, and for whom it waits now."""
        self.place = run.place
        if run.latest is not self.seen:
            self.seen, self.waits_for = run.latest, _waits_for(run.latest)


class Recovery:
    """Claims due transactions until it is stopped. `clock` gives seconds since the epoch."""

    def __init__(
        self,
        *,
        journal: Journal,
        runs: Runs,
        registry: Registry,
        memory: MemoryBudget,
        lease_s: float,
        clock: Callable[[], float],
    ) -> None:
        self._journal = journal
        self._runs = runs
        self._registry = registry
        self._memory = memory
        self._lease_s = lease_s
        self._clock = clock
        self._adopted: dict[str, _Adopted] = {}
        self._refresh_at = 0.0
        self.task: Final = RepeatingTask("recovery", self._round, failure_pause_s=PAUSE_MAX_S, stop_max_s=STOP_MAX_S)

    async def run_once(self) -> int:
        """Claim what is due and start it; returns how many transactions were claimed."""
        for id_, adopted in list(self._adopted.items()):
            run = self._runs.get(id_)
            if run is None:
                del self._adopted[id_]
            else:
                adopted.look(run)
        return await self._claim(Place.ADOPTED, hung=False) + await self._claim(Place.HUNG, hung=True)

    async def _claim(self, place: Place, *, hung: bool) -> int:
        """Claim hung transactions or the others; hung ones must not take the places or the memory of the others."""
        now = self._clock()
        room = self._room(place, now)
        bytes_left = self._memory.left(hung=hung)
        if room <= 0 or self._runs.stopping or (self._adopted and not bytes_left):
            return 0
        claim = transactions.Claim(
            due_by=now,
            lease_until=now + self._lease_s,
            limit=room,
            bytes_max=min(READ_BYTES_MAX, bytes_left),
            hung=hung,
        )
        claimed = await take_over(self._journal, claim)
        slow = Counter(
            participant
            for adopted in self._adopted.values()
            if adopted.place is place and now - adopted.since >= SLOW_AFTER_S
            for participant in adopted.waits_for
        )
        for taken in claimed:
            waits_for = _waits_for(taken.transaction)
            if all(slow[each] < SLOW_MAX for each in waits_for):  # otherwise it is due again when its lease ends
                seen = taken.transaction
                self._adopted[seen.id] = _Adopted(since=now, place=place, seen=seen, waits_for=waits_for)
                await self._runs.adopt(taken)
        return len(claimed)

    def _room(self, place: Place, now: float) -> int:
        adopted = [each for each in self._adopted.values() if each.place is place]
        quick = sum(now - each.since < SLOW_AFTER_S for each in adopted)
        return min(BATCH_MAX, PARALLEL_MAX - quick, ADOPTED_MAX - len(adopted))

    async def start(self) -> None:
        await self.task.start()

    async def stop(self) -> None:
        """Let a claim in progress finish; otherwise its transactions would have to wait for their leases to end."""
        await self.task.stop()

    async def _round(self) -> float:
        loop = asyncio.get_running_loop()
        try:
            claimed = await self.run_once()
            pause_s = PAUSE_MIN_S if claimed else await self._pause_s()
            if loop.time() >= self._refresh_at:
                await self._registry.refresh()
                self._refresh_at = loop.time() + PAUSE_MAX_S
        except DatabaseError as error:
            log.warning("event=recovery_failed error=%s", error.kind)
            return PAUSE_MAX_S
        return pause_s

    async def _pause_s(self) -> float:
        next_wake_at = await self._journal.read(transactions.next_wake_at)
        if next_wake_at is None:
            return PAUSE_MAX_S
        return min(PAUSE_MAX_S, max(PAUSE_MIN_S, next_wake_at - self._clock()))


def _waits_for(transaction: Transaction) -> frozenset[str]:
    """Who has to answer next: participants by name, inline endpoints by host."""
    return frozenset(branch.asked_of for branch in awaited(transaction))
