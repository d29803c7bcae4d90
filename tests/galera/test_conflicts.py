"""Two nodes of a Galera cluster write at the same moment: locks are local, so the commit is where one of them loses.

What the losing node then does again must see what the winner wrote, and no read may miss what was recorded elsewhere.
"""

import asyncio
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from sqlalchemy import Connection

from app.protocol.values import Transaction
from app.storage import calls, errors, queries, transactions
from app.storage.group_commit import Journal
from holdfast.wire import Decision
from tests.harness.coordinator_app import until
from tests.harness.galera import GaleraCluster
from tests.harness.transactions import call, transaction

WAIT_S = 30


class Simultaneous:
    """A write that is carried out on two nodes before either of them commits; counts how often in all."""

    def __init__(self, function: Callable[..., Sequence[Any]]) -> None:
        self._function = function
        self._both = threading.Barrier(2)
        self._tried = threading.local()
        self.tries = 0

    def write(self, connection: Connection, items: Sequence[Any]) -> Sequence[Any]:
        answers = self._function(connection, items)
        self.tries += 1
        if not hasattr(self._tried, "before"):  # each journal has one thread that writes
            self._tried.before = True
            self._both.wait(WAIT_S)
        return answers


async def recorded(journal: Journal, *new: Transaction) -> None:
    await asyncio.gather(
        *(journal.write(transactions.record, transactions.NewRecord(transaction=each)) for each in new)
    )


def decided(before: Transaction, decision: Decision) -> transactions.Save:
    after = replace(before, decision=decision, decided_at=5.0, wake_at=90.0)
    return transactions.Save(before=before, after=after, calls=(call(before, 1),))


async def test_two_nodes_never_decide_differently(journals: list[Journal]) -> None:
    one, two, _ = journals
    await recorded(one, transaction(1))
    await two.read(transactions.find, transaction(1).id)
    save = Simultaneous(transactions.save)
    outcomes = await asyncio.gather(
        one.write(save.write, decided(transaction(1), Decision.CONFIRM)),
        two.write(save.write, decided(transaction(1), Decision.CANCEL)),
        return_exceptions=True,
    )
    (winner,) = [outcome for outcome in outcomes if isinstance(outcome, Transaction)]
    (loser,) = [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
    assert isinstance(loser, errors.StaleError), loser
    assert save.tries == 2, "the loser's second try found out by itself that it is stale"
    for journal in journals:
        assert await journal.read(transactions.find, transaction(1).id) == winner
        assert len(await journal.read(calls.list_calls, transaction(1).id, 10, 0)) == 1


async def test_what_two_nodes_claim_is_disjoint(journals: list[Journal]) -> None:
    one, two, three = journals
    await recorded(three, *map(transaction, range(8)))
    claim = Simultaneous(transactions.claim)
    wanted = transactions.Claim(due_by=999.0, lease_until=2000.0, limit=5)
    answers = await asyncio.gather(one.write(claim.write, wanted), two.write(claim.write, wanted))
    assert claim.tries == 3, "both took the first five; one of them had to look again"
    assert sorted(len(answer) for answer in answers) == [3, 5]
    claimed = sorted(each.id for answer in answers for each in answer)
    assert claimed == [transaction(n).id for n in range(8)]
    for answer in answers:
        assert [each.id for each in answer] == [
            each.transaction.id for each in await three.read(transactions.find_claimed, answer)
        ], "the third node sees whose they are"


async def test_a_key_that_two_nodes_record_begins_one_transaction(journals: list[Journal]) -> None:
    record = Simultaneous(transactions.record)
    new = [transactions.NewRecord(transaction=transaction(n), idempotency_key="k", request_hash="h") for n in (1, 2)]
    answers = await asyncio.gather(*(journals[n].write(record.write, new[n]) for n in range(2)))
    assert sorted(each.created for each in answers) == [False, True]
    assert len({each.transaction_id for each in answers}) == 1
    assert await journals[2].read(queries.count_unfinished) == 1


async def test_whoever_shares_a_commit_with_a_conflict_loses_nothing(journals: list[Journal]) -> None:
    one, two, _ = journals
    await recorded(one, transaction(1), transaction(2))
    await two.read(transactions.find, transaction(2).id)
    together = Simultaneous(save_and_record)
    others = [transaction(n) for n in range(10, 20)]
    outcomes = await asyncio.gather(
        one.write(together.write, (decided(transaction(1), Decision.CONFIRM), transaction(3))),
        two.write(together.write, (decided(transaction(2), Decision.CONFIRM), transaction(3))),
        *(two.write(transactions.record, transactions.NewRecord(transaction=each)) for each in others),
        return_exceptions=True,
    )
    failed = [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
    assert len(failed) == 1, "the id that both recorded: only its own caller is told"
    for each in others:
        assert await one.read(transactions.find, each.id) == each


def save_and_record(connection: Connection, items: Sequence[tuple[transactions.Save, Transaction]]) -> list[None]:
    """A save that conflicts with nothing, and a record that does."""
    transactions.save(connection, [save for save, _ in items])
    transactions.record(connection, [transactions.NewRecord(transaction=each) for _, each in items])
    return [None] * len(items)


async def test_no_read_misses_what_another_node_recorded_before(
    journals: list[Journal], cluster: GaleraCluster
) -> None:
    """A participant that asks a node that lags must not be told "unknown": it would cancel what was confirmed."""
    recorded_at, lagging, _ = journals
    await lagging.read(queries.find_decision, "unknown")
    database = lagging.engine.url.database
    with cluster.lagging(1):
        await recorded(recorded_at, transaction(1))
        saved = await recorded_at.write(transactions.save, decided(transaction(1), Decision.CONFIRM))
        assert cluster.nodes[1].execute(f"SELECT id FROM {database}.transactions") == ()
        asked = (
            asyncio.create_task(lagging.read(queries.find_decision, saved.id)),
            asyncio.create_task(lagging.read(transactions.find, saved.id)),
            asyncio.create_task(lagging.write(transactions.save, decided(saved, Decision.CONFIRM))),
        )

        async def all_wait() -> bool:
            busy = cluster.nodes[1].execute(
                f"SELECT id FROM information_schema.processlist WHERE db = '{database}' AND command = 'Query'"
            )
            return len(busy) == len(asked) or any(task.done() for task in asked)

        await until(all_wait)
        assert not any(task.done() for task in asked)
    decision, found, saved_again = await asyncio.gather(*asked)
    assert decision == queries.StoredDecision(decision=Decision.CONFIRM, deadline=31.0, finished=False)
    assert found == saved
    assert saved_again.version == 3
