"""Carries out commands of initiators and operators, whichever process is working on the transaction.

A run of this process gets the command at once, and a transaction that nobody is working on is taken over together with
it. One that another process is working on stays with its owner: the command goes into its inbox, and only if nothing
comes of it, the transaction is taken over. What is allowed is up to app.protocol.
"""

import asyncio
import os
import random
from collections.abc import Callable
from typing import Final

from app.engine.errors import ObjectedError, OverloadedError
from app.engine.run import PendingCommand, RunEndedError, take_over
from app.engine.runs import Runs
from app.engine.waiters import wait_for_event
from app.protocol.messages import Command
from app.protocol.steps import is_at_rest, objection
from app.protocol.transaction_id import ENTROPY_BYTES, new_id
from app.protocol.values import Transaction
from app.storage import commands, transactions
from app.storage.commands import Asked, Standing

ROUNDS_MAX: Final = 8
"""Maximum attempts at a command whose transaction changes hands again and again."""
PAUSE_S: Final = 0.05
"""Longest pause before the second attempt, in seconds; grows with each further attempt."""
SILENCE_S: Final = 1.0
"""Without an outcome for this long the owner counts as dead, in seconds, although its lease has not passed."""


class Commands:
    """Carries out commands.

    `poll_s` says how often to look for an outcome where nobody tells, in seconds. With `alone`, no other process uses
    the database, and no command needs the inbox.
    """

    def __init__(
        self,
        *,
        runs: Runs,
        poll_s: Callable[[], float],
        alone: bool,
    ) -> None:
        self._runs = runs
        self._poll_s = poll_s
        self._alone = alone
        self._context = runs.context
        self._taking: dict[str, asyncio.Task[None]] = {}
        self._asked: dict[str, list[PendingCommand]] = {}

    async def carry_out(self, transaction_id: str, command: Command) -> Transaction:
        """Carry out a command; returns the transaction once the effect is durable.

        Raises UnknownTransactionError, ObjectedError if the transaction's state doesn't allow it, or OverloadedError
        if the transaction kept changing hands: the command had no effect.
        """
        for round_ in range(ROUNDS_MAX):
            # a random pause, so that two replicas don't keep colliding
            await asyncio.sleep(random.uniform(0, PAUSE_S * round_))  # noqa: S311
            done: asyncio.Future[Transaction] = asyncio.get_running_loop().create_future()
            pending = PendingCommand(command=command, done=done)
            transaction = await self._runs.find(transaction_id)
            run = self._runs.active(transaction_id)
            if run is not None and not run.latest.finished:
                run.ask(pending)
            elif self._runs.stopping:
                raise OverloadedError
            else:
                _check(transaction, command)
                if transaction.finished:
                    return transaction  # nothing left to do: it already is as requested
                if self._is_owned(transaction):
                    return await self._ask_the_owner(transaction_id, command)
                if not await self._take(transaction, pending):
                    continue
            try:
                return await done
            except RunEndedError:
                continue
        raise OverloadedError

    def _is_owned(self, transaction: Transaction) -> bool:
        """Whether another process is working on it."""
        assert transaction.wake_at is not None, "it isn't finished"
        lease_passed = transaction.wake_at <= self._context.clock()
        return not (self._alone or lease_passed or is_at_rest(transaction, self._context.policy))

    async def _ask_the_owner(self, transaction_id: str, command: Command) -> Transaction:
        now = self._context.clock()
        id_ = new_id(now, os.urandom(ENTROPY_BYTES))
        asked = Asked(id=id_, transaction_id=transaction_id, at=now, command=command)
        await self._context.journal.write(commands.ask, asked)
        self._context.tell(transaction_id)
        standing = await self._until_heard(asked)
        if standing.heard is None and not await self._context.journal.write(commands.withdraw, asked.id):
            standing = await self._context.journal.read(commands.find_standing, asked.id)  # heard just now
        transaction = await self._runs.find_stored(transaction_id)
        if standing.heard is not None:
            if standing.heard.objection is not None:
                raise ObjectedError(standing.heard.objection, transaction)
            return transaction
        _check(transaction, command)
        if not transaction.finished:
            raise OverloadedError
        return transaction

    async def _until_heard(self, asked: Asked) -> Standing:
        """Wait for the outcome. Whoever takes the transaction over, here or elsewhere, has the command with it."""
        with self._context.waiters.watching(asked.transaction_id) as changed:
            standing = await self._listen(asked, changed)
            for _ in range(ROUNDS_MAX):
                if standing.heard is not None or standing.is_final or self._runs.stopping:
                    break
                await self._take_over(asked)
                standing = await self._listen(asked, changed)
        return standing

    async def _listen(self, asked: Asked, changed: asyncio.Event) -> Standing:
        loop = asyncio.get_running_loop()
        until = loop.time() + SILENCE_S
        while True:
            changed.clear()
            standing = await self._context.journal.read(commands.find_standing, asked.id)
            left_s = until - loop.time()
            if standing.heard is not None or standing.is_final or left_s <= 0:
                return standing
            await wait_for_event(changed, min(left_s, self._poll_s()))

    async def _take_over(self, asked: Asked) -> None:
        """Take the transaction from an owner that has been silent.

        The transaction is read before the command: if the owner hears it after that, the version differs, and the claim
        takes nothing.
        """
        run = self._runs.active(asked.transaction_id)
        if run is not None:  # recovery has taken it over meanwhile
            await run.look()
            return
        transaction = await self._runs.find_stored(asked.transaction_id)
        standing = await self._context.journal.read(commands.find_standing, asked.id)
        if standing.heard is None and not transaction.finished:
            await asyncio.shield(self._claiming(transaction))

    async def _take(self, transaction: Transaction, pending: PendingCommand) -> bool:
        """Take a transaction over, once for all waiting commands; returns whether this command went along."""
        self._asked.setdefault(transaction.id, []).append(pending)
        try:
            await asyncio.shield(self._claiming(transaction))
        finally:
            left = self._asked.get(transaction.id, [])
            went_along = pending not in left
            if not went_along:
                left.remove(pending)
            if not left:
                self._asked.pop(transaction.id, None)
        return went_along

    def _claiming(self, transaction: Transaction) -> asyncio.Task[None]:
        claiming = self._taking.get(transaction.id)
        if claiming is None:
            claiming = self._taking[transaction.id] = self._runs.spawn_claim(self._claim(transaction))
            claiming.add_done_callback(lambda _: self._taking.pop(transaction.id))
        return claiming

    async def _claim(self, transaction: Transaction) -> None:
        """Claim the transaction if it still is as it was seen, after a run of this process that was overtaken."""
        run = self._runs.get(transaction.id)
        if run is not None and not run.leaving:
            return  # recovery has started it meanwhile, and it takes commands
        if run is not None:
            await run.ended.wait()
        claim = transactions.Claim(
            due_by=None,
            lease_until=self._context.clock() + self._context.policy.lease_s,
            transaction_id=transaction.id,
            version=transaction.version,
        )
        for taken in await take_over(self._context.journal, claim):
            if await self._runs.adopt(taken, self._asked.get(transaction.id, ())):
                self._asked.pop(transaction.id, None)


def _check(transaction: Transaction, command: Command) -> None:
    reason = objection(transaction, command)
    if reason is not None:
        raise ObjectedError(reason, transaction)
