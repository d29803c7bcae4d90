"""One client's bare sum: what two pairs of calls and two commits cost when nothing coordinates them.

    python -m tests.benchmark.bare_sum '{"database_url": …, "participant_url": …, "seconds": 8, "warmup_s": 2}'

One after the other, again and again, in one thread with blocking sockets and psycopg, the fastest that a Python client
can be: commit (INSERT of a row as wide as a transaction's), Try at both participants at once, commit (UPDATE of that
row), Confirm at both at once. Each commit is a statement that commits by itself, so one round trip. Prints one JSON
document. The client's own request to a coordinator is not in it.
"""

import json
import socket
import subprocess
import sys
import time
import uuid
from dataclasses import asdict, dataclass
from typing import Final
from urllib.parse import urlsplit

import psycopg

from tests.harness.repository import ROOT

_BODY: Final = json.dumps({"transaction_id": str(uuid.UUID(int=0)), "branch": "a", "payload": {"sku": "A-1"}}).encode()
_DOCUMENT: Final = json.dumps([{"name": "a", "participant": "a", "payload": {"sku": "A-1", "quantity": 2}}] * 4)
_ANSWER_BYTES_MAX: Final = 65_536


@dataclass(frozen=True, kw_only=True)
class BareSum:
    """Medians over the window, in ms: of the whole, and of its halves (two commits, two pairs of calls)."""

    whole_ms: float
    commits_ms: float
    calls_ms: float
    count: int


def run_bare_sum(database_url: str, participant_url: str, *, seconds: float, warmup_s: float) -> BareSum:
    """Measure it in a process of its own."""
    plan = {"participant_url": participant_url, "seconds": seconds, "warmup_s": warmup_s}
    plan["database_url"] = database_url.replace("+psycopg", "")
    command = [sys.executable, "-m", "tests.benchmark.bare_sum", json.dumps(plan)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    return BareSum(**json.loads(done.stdout))


class _Pair:
    """A connection to each of the two participants; both calls are under way at once."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._sockets = [socket.create_connection((parts.hostname or "", parts.port or 80)) for _ in range(2)]
        for each in self._sockets:
            each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._host = parts.netloc

    def call(self, operation: str) -> None:
        for name, each in zip("ab", self._sockets, strict=True):
            each.sendall(
                f"POST /{name}/{operation} HTTP/1.1\r\nHost: {self._host}\r\nContent-Type: application/json\r\n"
                f"Content-Length: {len(_BODY)}\r\n\r\n".encode()
                + _BODY
            )
        for each in self._sockets:  # the no-op answers in one segment
            answer = each.recv(_ANSWER_BYTES_MAX)
            assert answer.startswith(b"HTTP/1.1 200 "), answer


def _measure(database_url: str, participant_url: str, *, seconds: float, warmup_s: float) -> BareSum:
    pair = _Pair(participant_url)
    whole, commits, calls = [], [], []
    with psycopg.connect(database_url, autocommit=True, prepare_threshold=0) as connection:
        connection.execute("CREATE TABLE IF NOT EXISTS bare (id text PRIMARY KEY, state text, definition text)")
        starts_at = time.perf_counter() + warmup_s
        ends_at = starts_at + seconds
        while (began := time.perf_counter()) < ends_at:
            id_ = str(uuid.uuid4())
            connection.execute("INSERT INTO bare VALUES (%s, %s, %s)", (id_, _DOCUMENT, _DOCUMENT))
            recorded = time.perf_counter()
            pair.call("try")
            tried = time.perf_counter()
            connection.execute("UPDATE bare SET state = %s WHERE id = %s", (_DOCUMENT, id_))
            decided = time.perf_counter()
            pair.call("confirm")
            confirmed = time.perf_counter()
            if began >= starts_at:
                whole.append(confirmed - began)
                commits.append(recorded - began + decided - tried)
                calls.append(tried - recorded + confirmed - decided)
    return BareSum(
        whole_ms=_median_ms(whole), commits_ms=_median_ms(commits), calls_ms=_median_ms(calls), count=len(whole)
    )


def _median_ms(values_s: list[float]) -> float:
    return 1000 * sorted(values_s)[len(values_s) // 2]


if __name__ == "__main__":
    print(json.dumps(asdict(_measure(**json.loads(sys.argv[1])))))
