"""What a claim costs, beside payloads of 64 KiB and without: the time that the writer spends on 50 transactions.

    python -m tests.benchmark.claims [postgresql | sqlite]

Prints the median of some rounds, in milliseconds a claim. While the writer is at it, nobody's step is saved.
"""

import asyncio
import statistics
import sys
import time
from typing import Final

from sqlalchemy import create_engine

from app.protocol.values import Branch, Transaction
from app.storage import tables, transactions
from app.storage.group_commit import Journal
from holdfast.json_text import text_of
from tests.benchmark.databases import databases

CLAIMED: Final = 50
ROUNDS: Final = 15
SIZES: Final = (0, 64 * 1024)


async def claim_ms(database_url: str, payload_bytes: int) -> float:
    """Milliseconds for a claim of transactions with two payloads of this size; the median of some rounds."""
    payload = text_of("x" * payload_bytes)
    branches = tuple(Branch(name=name, participant="p", payload=payload) for name in ("a", "b"))
    journal, spent = Journal(database_url), []
    for number in range(CLAIMED):
        new = Transaction(
            id=f"{number:036d}",
            version=1,
            created_at=1.0,
            deadline=2.0,
            wake_at=number / CLAIMED,
            branches=branches,
        )
        await journal.write(transactions.record, transactions.NewRecord(transaction=new))
    for round_ in range(ROUNDS):
        claim = transactions.Claim(due_by=round_ + 1.0, lease_until=round_ + 1.5, limit=CLAIMED)
        began = time.perf_counter()
        claimed = await journal.write(transactions.claim, claim)
        spent.append(1000 * (time.perf_counter() - began))
        assert len(claimed) == CLAIMED
    await journal.close()
    return statistics.median(spent)


def main() -> None:
    kind = sys.argv[1] if len(sys.argv) > 1 else "postgresql"
    with databases() as made:
        for size in SIZES:
            database = made.postgres() if kind == "postgresql" else made.sqlite()
            engine = create_engine(database.url)
            tables.metadata.create_all(engine)
            engine.dispose()
            print(f"{kind}, payloads of {size:,} bytes: {asyncio.run(claim_ms(database.url, size)):.2f} ms a claim")


if __name__ == "__main__":
    main()
