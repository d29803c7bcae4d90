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
from app.storage import calls as call_rows
from app.storage import errors, queries
from app.storage import transactions as transaction_rows
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


async def recorded(journal: Journal, *transactions: Transaction) -> None:
    await asyncio.gather(
        *(journal.write(transaction_rows.record, transaction_rows.NewRecord(transaction=it)) for it in transactions)
    )


def decided(before: Transaction, decision: Decision) -> transaction_rows.Save:
    after = replace(before, decision=decision, decided_at=5.0, wake_at=90.0)
    return transaction_rows.Save(before=before, after=after, calls=(call(before, 1),))


async def test_two_nodes_never_decide_differently(journals: list[Journal]) -> None:
    one, two, _ = journals
    await recorded(one, transaction(1))
    await two.read(transaction_rows.find, transaction(1).id)
    save = Simultaneous(transaction_rows.save)
    outcomes = await asyncio.gather(
        one.write(save.write, decided(transaction(1), Decision.CONFIRM)),
        two.write(save.write, decided(transaction(1), Decision.CANCEL)),
        return_exceptions=True,
    )
    (winner,) = [it for it in outcomes if isinstance(it, Transaction)]
    (loser,) = [it for it in outcomes if isinstance(it, BaseException)]
    assert isinstance(loser, errors.StaleError), loser
    assert save.tries == 2, "the loser's second try found out by itself that it is stale"
    for journal in journals:
        assert await journal.read(transaction_rows.find, transaction(1).id) == winner
        assert len(await journal.read(call_rows.list_calls, transaction(1).id, 10, 0)) == 1


async def test_what_two_nodes_claim_is_disjoint(journals: list[Journal]) -> None:
    one, two, three = journals
    await recorded(three, *map(transaction, range(8)))
    claim = Simultaneous(transaction_rows.claim)
    wanted = transaction_rows.Claim(due_by=999.0, lease_until=2000.0, limit=5)
    answers = await asyncio.gather(one.write(claim.write, wanted), two.write(claim.write, wanted))
    assert claim.tries == 3, "both took the first five; one of them had to look again"
    assert sorted(len(it) for it in answers) == [3, 5]
    claimed = sorted(it.id for answer in answers for it in answer)
    assert claimed == [transaction(n).id for n in range(8)]
    for answer in answers:
        for it in answer:
            assert await three.read(transaction_rows.find, it.id) == it


async def test_a_key_that_two_nodes_record_begins_one_transaction(journals: list[Journal]) -> None:
    record = Simultaneous(transaction_rows.record)
    new = [
        transaction_rows.NewRecord(transaction=transaction(n), idempotency_key="k", request_hash="h") for n in (1, 2)
    ]
    answers = await asyncio.gather(*(journals[n].write(record.write, new[n]) for n in range(2)))
    assert sorted(it.created for it in answers) == [False, True]
    assert len({it.transaction_id for it in answers}) == 1
    assert await journals[2].read(queries.count_unfinished) == 1


async def test_whoever_shares_a_commit_with_a_conflict_loses_nothing(journals: list[Journal]) -> None:
    one, two, _ = journals
    await recorded(one, transaction(1), transaction(2))
    await two.read(transaction_rows.find, transaction(2).id)
    together = Simultaneous(save_and_record)
    others = [transaction(n) for n in range(10, 20)]
    outcomes = await asyncio.gather(
        one.write(together.write, (decided(transaction(1), Decision.CONFIRM), transaction(3))),
        two.write(together.write, (decided(transaction(2), Decision.CONFIRM), transaction(3))),
        *(two.write(transaction_rows.record, transaction_rows.NewRecord(transaction=it)) for it in others),
        return_exceptions=True,
    )
    failed = [it for it in outcomes if isinstance(it, BaseException)]
    assert len(failed) == 1, "the id that both recorded: only its own caller is told"
    for it in others:
        assert await one.read(transaction_rows.find, it.id) == it


def save_and_record(connection: Connection, items: Sequence[tuple[transaction_rows.Save, Transaction]]) -> list[None]:
    """A save that conflicts with nothing, and a record that does."""
    transaction_rows.save(connection, [save for save, _ in items])
    transaction_rows.record(connection, [transaction_rows.NewRecord(transaction=it) for _, it in items])
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
        saved = await recorded_at.write(transaction_rows.save, decided(transaction(1), Decision.CONFIRM))
        assert cluster.nodes[1].execute(f"SELECT id FROM {database}.transactions") == ()
        asked = [
            asyncio.create_task(lagging.read(queries.find_decision, saved.id)),
            asyncio.create_task(lagging.read(transaction_rows.find, saved.id)),
            asyncio.create_task(lagging.write(transaction_rows.save, decided(saved, Decision.CONFIRM))),
        ]

        async def all_wait() -> bool:
            busy = cluster.nodes[1].execute(
                f"SELECT id FROM information_schema.processlist WHERE db = '{database}' AND command = 'Query'"
            )
            return len(busy) == len(asked) or any(task.done() for task in asked)

        await until(all_wait)
        assert not any(task.done() for task in asked)
    decision, found, saved_again = await asyncio.gather(*asked)
    assert decision == (Decision.CONFIRM, 31.0)
    assert found == saved
    assert saved_again.version == 3
