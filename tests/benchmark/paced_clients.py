"""Clients that do so many transactions when they are told to, and rest in between: in a process of their own.

    python -m tests.benchmark.paced_clients '{"url": …, "participant_url": …, "clients": 64, "driver": …}'

reads a number from each line, does so many transactions, and prints what came of them as one line of JSON. Nothing is
under way before or after, so whatever CPU is used in between was used for exactly these transactions, however busy
the machine is. Each time the clients connect anew: a server closes what has rested for too long.
"""

import asyncio
import importlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Self

import uvloop

from tests.benchmark.databases import CheckFailed
from tests.benchmark.http_client import Connections
from tests.harness.repository import ROOT


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What the clients do, each in a closed loop."""

    url: str
    participant_url: str
    clients: int
    driver: str = "tests.benchmark.holdfast_client"
    key: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """What came of so many transactions."""

    confirmed: int
    elapsed_s: float
    p50_ms: float
    first_error: str


class PacedClients:
    """The process, from entry to exit."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan

    def __enter__(self) -> Self:
        command = [sys.executable, "-m", "tests.benchmark.paced_clients", json.dumps(asdict(self._plan))]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1, cwd=ROOT
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        with self._process:
            pass

    def run(self, transactions: int) -> Batch:
        """Raises CheckFailed unless each was confirmed."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{transactions}\n")
        line = self._process.stdout.readline()
        if not line:
            raise CheckFailed("the clients' process ended before it answered")
        batch = Batch(**json.loads(line))
        if batch.first_error or batch.confirmed != transactions:
            raise CheckFailed(f"{batch.confirmed} of {transactions} confirmed; the first error: {batch.first_error}")
        return batch


# --- the clients --------------------------------------------------------------------------------------------------


async def _run(plan: Plan, driver: Any, transactions: int, batch_number: int) -> Batch:
    numbers = iter(range(transactions))
    latencies_s: list[float] = []
    began_at = time.perf_counter()
    clients = [_client(plan, driver, numbers, batch_number, latencies_s) for _ in range(plan.clients)]
    ended = await asyncio.gather(*clients, return_exceptions=True)
    return Batch(
        confirmed=len(latencies_s),
        elapsed_s=time.perf_counter() - began_at,
        p50_ms=1000 * sorted(latencies_s)[len(latencies_s) // 2] if latencies_s else 0.0,
        first_error=next((f"{type(each).__name__}: {each}" for each in ended if each is not None), ""),
    )


async def _client(plan: Plan, driver: Any, numbers: Iterator[int], batch_number: int, latencies_s: list[float]) -> None:
    """Takes the next number until there are none; its first error ends it."""
    connections = Connections(plan.key)
    try:
        for number in numbers:
            began_at = time.perf_counter()
            await driver.transact(connections, plan.url, plan.participant_url, f"{batch_number}-{number}")
            latencies_s.append(time.perf_counter() - began_at)
    finally:
        connections.close()


def _main(plan: Plan) -> None:
    driver = importlib.import_module(plan.driver)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        for batch_number, line in enumerate(sys.stdin):
            print(json.dumps(asdict(runner.run(_run(plan, driver, int(line), batch_number)))), flush=True)


if __name__ == "__main__":
    _main(Plan(**json.loads(sys.argv[1])))
