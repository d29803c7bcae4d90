"""Ten million finished transactions with their history, and a thousand that hang: what costs more than without them?"""

import http.client
import json
import statistics
import sys
import time
from typing import Any, Final
from urllib.parse import quote, urlsplit

from tests.benchmark.cases import Case, Duration, load_case
from tests.benchmark.contenders import Holdfast
from tests.benchmark.databases import CheckFailed, Database, Databases
from tests.benchmark.noop import Noop
from tests.benchmark.rows import begin_one, copy, settle

HUNG: Final = 1000
"""So many hang, and a page of one row each makes a thousand pages."""
REPEATS: Final = 100
_FAR_OFF: Final = str(1e12)


def size_cases(databases: Databases, participant: Noop, duration: Duration, rows: int) -> list[Case]:
    """Throughput, and the hung list, on an empty database and on a full one. Makes the rows first."""
    empty, alone, full = (_migrated(databases) for _ in range(3))
    _tell(f"making {HUNG} hung transactions, twice")
    for database in (alone, full):
        _add_hung(database, participant)
    _tell(f"making {rows:,} finished transactions with {4 * rows:,} calls")
    _add_finished(full, participant, rows)

    def hung_list(name: str, label: str, database: Database) -> Case:
        return Case(name=name, label=label, clients=1, measure=lambda: _hung_list(database, participant))

    return [
        load_case("size-empty", "PostgreSQL, empty", Holdfast(empty), participant, duration),
        load_case("size-full", f"PostgreSQL, {rows:,} finished", Holdfast(full), participant, duration),
        hung_list("hung-empty", "hung list, nothing at all", empty),
        hung_list("hung-alone", f"hung list, {HUNG:,} hung and nothing else", alone),
        hung_list("hung-full", f"hung list, {HUNG:,} hung and {rows:,} finished", full),
    ]


def _migrated(databases: Databases) -> Database:
    database = databases.postgres()
    database.migrate()
    return database


def _add_hung(database: Database, participant: Noop) -> None:
    """They hang because a participant refuses the Confirm; the next attempt is far off, so that none disturbs."""
    template_id = begin_one(database, participant, "a", "refusing", phase="confirming")
    engine = database.engine
    copy(engine, template_id, HUNG, {"hung_since": "t.hung_since - n", "wake_at": _FAR_OFF})
    with engine.begin() as connection:  # the template itself would be repeated
        for table, key in (("hung_branches", "transaction_id"), ("transactions", "id")):
            connection.exec_driver_sql(f"DELETE FROM {table} WHERE {key} = %s", (template_id,))
    settle(engine)
    engine.dispose()
    database.only_after(template_id)


def _add_finished(database: Database, participant: Noop, rows: int) -> None:
    template_id = begin_one(database, participant, "a", "b", phase="confirmed")
    engine = database.engine
    began = time.monotonic()
    copy(engine, template_id, rows)
    _tell(f"made in {time.monotonic() - began:.0f} s; VACUUM and ANALYZE")
    settle(engine)
    engine.dispose()
    database.only_after(template_id)


def _hung_list(database: Database, participant: Noop) -> dict[str, Any]:
    """Medians in ms: of the first page of one row, and of the thousandth where there is one."""
    with Holdfast(database).start(participant) as running:
        parts = urlsplit(running.urls[0])
        client = http.client.HTTPConnection(parts.hostname or "", parts.port)
        cursors = _cursors(client)
        measured = {"first_page_ms": _median_ms(client, None)}
        if cursors:
            if len(cursors) != HUNG - 1:
                raise CheckFailed(f"{HUNG} pages must be there, but {len(cursors) + 1} are")
            measured["thousandth_page_ms"] = _median_ms(client, cursors[-1])
        client.close()
    return measured


def _cursors(client: http.client.HTTPConnection) -> list[str]:
    """The cursor of each page but the first."""
    found: list[str] = []
    while (cursor := _page(client, found[-1] if found else None)["next_cursor"]) is not None:
        found.append(cursor)
    return found


def _median_ms(client: http.client.HTTPConnection, cursor: str | None) -> float:
    times_ms = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        _page(client, cursor)
        times_ms.append(1000 * (time.perf_counter() - began))
    return statistics.median(times_ms)


def _page(client: http.client.HTTPConnection, cursor: str | None) -> Any:
    client.request("GET", "/v1/admin/hung?limit=1" + (f"&cursor={quote(cursor)}" if cursor else ""))
    response = client.getresponse()
    answer = response.read()
    if response.status != 200:
        raise CheckFailed(f"the hung list answers {response.status}: {answer[:300]!r}")
    return json.loads(answer)


def _tell(what: str) -> None:
    print(what, file=sys.stderr, flush=True)
