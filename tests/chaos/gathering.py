"""Reads what a chaos run left behind: logs, ledgers, notes, and what the coordinator says by REST.

Independent of the coordinator's tables: its database is not opened here. Judges nothing; tests/harness/checker.py does.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import httpx
from sqlalchemy import Engine, text

from tests.chaos.call_log import read_log
from tests.chaos.keys import ShownKey
from tests.harness import ledger
from tests.harness.evidence import Account, Effect, Evidence, HistoryCall, Hold, Known, known_of
from tests.harness.notes import read_notes

PAGE: Final = 500
UNFINISHED_HOLDS: Final = text(
    "SELECT transaction_id, branch, state FROM holdfast_branches WHERE state NOT IN ('confirmed', 'cancelled')"
)


class Rest:
    """The coordinator's answers at the end, asked of the replicas in turn. `wall_ahead_s`: wall clock − monotonic."""

    def __init__(self, urls: Sequence[str], wall_ahead_s: float, shown_key: ShownKey) -> None:
        self._shown_key = shown_key
        self._clients = [httpx.Client(base_url=url, timeout=30.0) for url in urls]
        self._wall_ahead_s = wall_ahead_s
        self._turn = 0

    def close(self) -> None:
        for client in self._clients:
            client.close()

    def unfinished(self) -> int:
        """Whether anything is under way: how many phases have at least one transaction."""
        phases = ("trying", "confirming", "cancelling")
        return sum(bool(self._get("/v1/transactions", phase=phase, limit=1)["items"]) for phase in phases)

    def known(self) -> Iterator[Known]:
        for item in self._items("/v1/transactions", limit=PAGE):
            yield known_of(
                item,
                created_at=self._monotonic(item["created_at"]),
                finished_at=None if item["finished_at"] is None else self._monotonic(item["finished_at"]),
            )

    def hung(self) -> list[str]:
        return [item["id"] for item in self._items("/v1/admin/hung", limit=PAGE)]

    def history(self, transaction_id: str) -> list[HistoryCall]:
        calls = self._items(f"/v1/transactions/{transaction_id}/calls", limit=PAGE)
        return [HistoryCall(**{name: call[name] for name in ("branch", "operation", "answer")}) for call in calls]

    def _items(self, path: str, **query: Any) -> Iterator[Any]:
        cursor: dict[str, str] = {}
        while True:
            page = self._get(path, **query, **cursor)
            yield from page["items"]
            if page["next_cursor"] is None:
                return
            cursor = {"cursor": page["next_cursor"]}

    def _get(self, path: str, **query: Any) -> Any:
        self._turn += 1
        response = self._clients[self._turn % len(self._clients)].get(
            path, params=query, headers=self._shown_key.headers()
        )
        response.raise_for_status()
        return response.json()

    def _monotonic(self, timestamp: str) -> float:
        return datetime.fromisoformat(timestamp).timestamp() - self._wall_ahead_s


def gather(folder: Path, engines: Mapping[str, Engine], rest: Rest, *, histories_max: int) -> Evidence:
    """Everything that there is. Histories are looked into where most has happened, because there are many."""
    requests = [
        request for path in folder.glob("requests-*.tsv") for request in read_log(path, path.stem.split("-")[1])
    ]
    notes = [note for path in folder.glob("*.jsonl") for note in read_notes(path)]
    known = {each.transaction_id: each for each in rest.known()}
    asked: dict[str, int] = dict.fromkeys(known, 0)
    for request in requests:
        if request.transaction_id in asked:
            asked[request.transaction_id] += 1
    busiest = sorted(asked, key=lambda transaction_id: -asked[transaction_id])[:histories_max]
    accounts = [
        Account(participant=name, **row) for name, engine in engines.items() for row in ledger.read_accounts(engine)
    ]
    return Evidence(
        opening_balance=ledger.OPENING_BALANCE,
        opening_total=ledger.OPENING_BALANCE * ledger.ACCOUNTS * len(engines),
        requests=sorted(requests, key=lambda request: request.arrived_at),
        effects=[effect for name, engine in engines.items() for effect in _effects(name, engine)],
        accounts=accounts,
        holds=[hold for name, engine in engines.items() for hold in _holds(name, engine)],
        notes=sorted(notes, key=lambda note: note.seen_at),
        known=known,
        histories={transaction_id: rest.history(transaction_id) for transaction_id in busiest},
    )


def _effects(participant: str, engine: Engine) -> Iterator[Effect]:
    for row in ledger.read_effects(engine):
        del row["position"]
        yield Effect(participant=participant, **row)


def _holds(participant: str, engine: Engine) -> Iterator[Hold]:
    with engine.connect() as connection:
        for row in connection.execute(UNFINISHED_HOLDS).mappings():
            yield Hold(participant=participant, **row)


def dump(evidence: Evidence, path: Path) -> None:
    """Keep what REST said beside the logs: the processes are gone when somebody looks into a failure."""
    with path.open("w") as file:
        for each in evidence.known.values():
            calls = [
                [call.branch, call.operation, call.answer] for call in evidence.histories.get(each.transaction_id, ())
            ]
            document = {"id": each.transaction_id, "decision": each.decision, "outcome": each.outcome, "calls": calls}
            file.write(json.dumps(document) + "\n")
