"""Looks after expired holds, releases that crashed, and rows that are old enough to purge.

Decides when to look and whom to ask. What a finding means is up to the fence, and execution.py carries it out. Holds no
database connection while it asks. Safe to run in every replica: each row is claimed with a conditional write, and
everything that follows is conditional, too.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Final

from sqlalchemy.orm import Session

from holdfast.fence import rows
from holdfast.fence.database import Database, hide_values
from holdfast.fence.execution import Busy, Happening, Outcome, Rules, backoff_s
from holdfast.fence.handlers import Invoke, ends_the_task
from holdfast.fence.rows import Row
from holdfast.fence.steps import Event
from holdfast.hold import NotNow
from holdfast.participant.inquiry import Answered, Ask, Question, Questions, Verdict

log = logging.getLogger("holdfast")

BATCH_MAX: Final = 100
BATCHES_MAX: Final = 100
"""Maximum number of batches in a round; the rest waits for the next round."""
PATIENCE_S: Final = 5.0
"""How long a round waits for a batch before it starts the next, in seconds; a hanging release continues alone."""
CONCURRENCY_MAX: Final = 8
CLAIM_S: Final = 60.0
"""For how long other replicas leave a claimed row alone, in seconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reaper:
    """The reaper of one participant. `perform` processes an event on a branch, `ask` asks the coordinator.

    `finding` says what its answer means for a row; None: ask again later.
    """

    participant: str
    rules: Rules
    database: Database
    perform: Callable[[Happening], Awaitable[Outcome]]
    ask: Ask
    finding: Callable[[Row, Answered], Event | None]
    retention_s: float
    questions: Questions = field(init=False)
    _slow: set[asyncio.Task[None]] = field(default_factory=set, init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "questions", Questions(self.ask, self.rules.clock))

    async def run_once(self, *, patience_s: float | None = None) -> int:
        """Run one round of batches, as long as they are full; returns how many rows were settled.

        `patience_s`: how long to wait for a batch before starting the next.
        """
        settled = 0
        for _ in range(BATCHES_MAX):
            due = await self._due()
            done, is_late = await self._look_after_all(due, patience_s)
            settled += done
            if len(due) < BATCH_MAX and not is_late:
                break
        for _ in range(BATCHES_MAX):
            if await self._purge() < BATCH_MAX:
                break
        return settled

    async def run_for_ever(self, interval_s: float) -> None:
        """Run rounds about `interval_s` seconds apart until cancelled. No failure ends it."""
        try:
            while True:
                await asyncio.sleep(interval_s * (0.75 + 0.5 * self.rules.jitter()))
                try:
                    await self.run_once(patience_s=PATIENCE_S)
                except BaseException as error:
                    if ends_the_task(error):
                        raise
                    hide_values(error)
                    log.exception("event=reaper_failed participant=%s", self.participant)
        except asyncio.CancelledError:  # a `finally` would wait even if the loop has ended without cancelling this
            await _end(self._slow)
            raise

    async def _look_after_all(self, due: list[Row], patience_s: float | None) -> tuple[int, bool]:
        """Returns how many rows were settled, and whether patience ran out; rows not started by then are left."""
        queue, settled = deque(due), 0

        async def work() -> None:
            nonlocal settled
            while queue:
                is_settled = await self._look_after(queue.popleft())
                settled += is_settled

        workers = {asyncio.create_task(work()) for _ in range(min(CONCURRENCY_MAX, len(due)))}
        if not workers:
            return 0, False
        try:
            ended, slow = await asyncio.wait(workers, timeout=patience_s)
        except asyncio.CancelledError:
            await _end(workers)
            raise
        queue.clear()
        for worker in slow:
            self._slow.add(worker)
            worker.add_done_callback(self._slow.discard)
        for worker in ended:
            worker.result()
        return settled, bool(slow)

    async def _due(self) -> list[Row]:
        def work(session: Session, _: Invoke) -> list[Row]:
            now = self.rules.clock()
            return list(rows.due(session, self.rules.table, self.participant, now=now, limit=BATCH_MAX))

        return await self.database.run(work)

    async def _look_after(self, row: Row) -> bool:
        try:
            if not await self._claim(row):
                return False
            outcome = await self.perform(Happening(key=row.key, event=Event.DUE, version=row.version))
            if outcome.must_ask:
                return await self._find_out(row)
            return True
        except Busy as busy:
            await self._look_again(row, in_s=busy.after_s, checks=row.checks)
        except NotNow as not_now:
            log.warning("event=release_postponed transaction_id=%s branch=%s", row.transaction_id, row.branch)
            in_s = max(not_now.retry_after_s, backoff_s(self.rules, row.checks))
            await self._look_again(row, in_s=in_s, checks=row.checks + 1)
        except BaseException as error:
            if ends_the_task(error):
                raise
            hide_values(error)
            log.exception("event=release_failed transaction_id=%s branch=%s", row.transaction_id, row.branch)
            await self._look_again(row, in_s=backoff_s(self.rules, row.checks), checks=row.checks + 1)
        return False

    async def _find_out(self, row: Row) -> bool:
        answered = await self.questions.ask(Question(row.transaction_id, row.branch, row.coordinator_id))
        event = self.finding(row, answered)
        if event is None:
            await self._ask_again_later(row, answered)
            return False
        await self.perform(Happening(key=row.key, event=event, version=row.version))
        return True

    async def _ask_again_later(self, row: Row, answered: Answered) -> None:
        if answered.verdict is Verdict.UNREACHABLE and not answered.was_asked:
            in_s, checks = answered.recheck_in_s, row.checks
        elif answered.verdict is Verdict.UNREACHABLE:
            log.warning(
                "event=coordinator_unreachable transaction_id=%s branch=%s error=%s",
                row.transaction_id,
                row.branch,
                answered.why,
            )
            in_s, checks = backoff_s(self.rules, row.checks), row.checks + 1
        else:
            in_s, checks = max(answered.recheck_in_s, self.rules.schedule.recheck_min_s), 0
        ends_at = self.rules.schedule.ends_at(row)
        if ends_at is not None:
            in_s = min(in_s, max(0.0, ends_at - self.rules.clock()))
        await self._look_again(row, in_s=in_s, checks=checks)

    async def _claim(self, row: Row) -> bool:
        def work(session: Session, _: Invoke) -> bool:
            now = self.rules.clock()
            claimed = rows.claim(session, self.rules.table, row, now=now, until=now + CLAIM_S)
            session.commit()
            return claimed

        return await self.database.run(work)

    async def _look_again(self, row: Row, *, in_s: float, checks: int) -> None:
        """Schedule the next look. If that fails as well, the claim expires by itself."""

        def work(session: Session, _: Invoke) -> None:
            rows.look_again(session, self.rules.table, row, at=self.rules.clock() + in_s, checks=checks)
            session.commit()

        try:
            await self.database.run(work)
        except Exception as error:
            log.warning(
                "event=recheck_not_scheduled transaction_id=%s branch=%s error=%s",
                row.transaction_id,
                row.branch,
                type(error).__name__,
            )

    async def _purge(self) -> int:
        """Remove a batch of old rows; returns how many were looked at."""
        before = self.rules.clock() - self.retention_s

        def work(session: Session, _: Invoke) -> int:
            table = self.rules.table
            keys = rows.finished(session, table, self.participant, finished_before=before, limit=BATCH_MAX)
            session.commit()  # release read locks before the write starts
            rows.purge(session, table, keys, finished_before=before)
            session.commit()
            return len(keys)

        return await self.database.run(work)


async def _end(tasks: set[asyncio.Task[None]]) -> None:
    """Cancel tasks and wait until they have finished."""
    ending = list(tasks)
    for task in ending:
        task.cancel()
    await asyncio.gather(*ending, return_exceptions=True)
