"""A coordinator finds very many unfinished transactions at its start: how fast are they ended, in how much memory?

They are as a crash leaves them right after they were recorded: due, with no Try answered, so each needs everything.
"""

import time
from typing import Any

from sqlalchemy import text

from tests.benchmark.contenders import Holdfast
from tests.benchmark.databases import CheckFailed, Databases
from tests.benchmark.measuring import CALLS_PER_TRANSACTION
from tests.benchmark.noop import Noop, dead
from tests.benchmark.processes import cpu_s, rss_peak_mb, wait_until
from tests.benchmark.rows import begin_one, copy, settle

FROM_SHARE, TO_SHARE = 0.1, 0.9
"""The rate is that of the middle: start-up and the last stragglers are not what is asked about."""
TIMEOUT_S = 900.0
PAUSE_S = 0.2


def drain(databases: Databases, participant: Noop, count: int) -> dict[str, Any]:
    """One round on a database of its own. Raises CheckFailed when not all have ended, confirmed."""
    database = databases.postgres()
    database.migrate()
    with dead() as silent:
        template_id = begin_one(database, silent, "a", "b", phase="trying")
    engine = database.engine
    copy(engine, template_id, count - 1, {"wake_at": "0.0"})
    with engine.begin() as connection:
        connection.execute(text("UPDATE transactions SET wake_at = 0"))
    settle(engine)
    engine.dispose()
    seen: list[tuple[float, int]] = []
    calls = CALLS_PER_TRANSACTION * count

    def is_done() -> bool:
        seen.append((time.perf_counter(), participant.count() - before))
        return seen[-1][1] >= calls

    before = participant.count()
    with Holdfast(database).start(participant) as running:
        process_id = running.processes[0].id
        if not wait_until(is_done, timeout_s=TIMEOUT_S, pause_s=PAUSE_S):
            raise CheckFailed(f"only {seen[-1][1]} of {calls} calls within {TIMEOUT_S:.0f} s")
        database.expect(calls_each=CALLS_PER_TRANSACTION, confirmed=count)
        database.check()
        measured = {"rss_peak_mb": rss_peak_mb(process_id), "cpu_ms": 1000 * cpu_s([process_id]) / count}
    middle = [(at, made) for at, made in seen if FROM_SHARE * calls <= made <= TO_SHARE * calls]
    (began, first), (ended, last) = middle[0], middle[-1]
    return {"drained_per_s": (last - first) / CALLS_PER_TRANSACTION / (ended - began), **measured, "count": count}
