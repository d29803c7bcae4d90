"""The clients: so many in a closed loop, in a process of their own that costs as little CPU as it can.

    python -m tests.benchmark.load '{"urls": […], "clients": 64, …}'

prints `measuring` when the window begins, `measured` when it ends, and then one JSON document. Every answer is
checked: what is not the outcome that was asked for is an error, and is never counted as a transaction.
"""

import asyncio
import importlib
import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any, Final

import uvloop

from tests.benchmark.http_client import Connections, Unexpected
from tests.harness.repository import ROOT

END_TIMEOUT_S: Final = 90.0
"""How long the answers that are still awaited when the window has ended may take."""
RECONNECT_PAUSE_S: Final = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What the clients do. `dead_share` of the transactions have a branch at the participant `dead`.

    Those are begun beside the clients' own and waited for by nobody of them, or they would measure the time limit.
    """

    urls: list[str]
    clients: int
    warmup_s: float
    seconds: float
    participant_url: str
    driver: str = "tests.benchmark.holdfast_client"
    dead_share: float = 0.0


@dataclass(slots=True)
class Tally:
    """What came of it. `confirmed` and `cancelled` count from the first to the last answer, the others the window."""

    confirmed: int = 0
    cancelled: int = 0
    errors: int = 0
    first_error: str = ""
    in_window: int = 0
    window_s: float = 0.0
    p50_ms: float = 0.0
    p99_ms: float = 0.0


def run_load(plan: Plan, *, on_start: Callable[[], None], on_end: Callable[[], None]) -> Tally:
    """Run the clients in a process of their own; the callbacks are called as the window begins and ends."""
    command = [sys.executable, "-m", "tests.benchmark.load", json.dumps(asdict(plan))]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    callbacks = {"measuring": on_start, "measured": on_end}
    result = ""
    try:
        assert process.stdout is not None
        with process.stdout as output:
            for line in output:
                if callback := callbacks.get(line.strip()):
                    callback()
                else:
                    result = line
        if process.wait() != 0:
            raise RuntimeError("the clients failed")
    finally:
        process.kill()
        process.wait()
    return Tally(**json.loads(result))


# --- the clients --------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Load:
    """All clients of one round."""

    plan: Plan
    tally: Tally = field(default_factory=Tally)
    latencies_s: list[float] = field(default_factory=list)
    measures: bool = False
    stops: bool = False
    dead_debt: float = 0.0
    dead_tasks: set["asyncio.Task[None]"] = field(default_factory=set)

    async def run(self) -> Tally:
        driver = importlib.import_module(self.plan.driver)
        clients = [asyncio.create_task(self._client(driver, number)) for number in range(self.plan.clients)]
        await _pass(self.plan.warmup_s)
        self.measures, started_at = True, time.perf_counter()
        print("measuring", flush=True)
        await _pass(self.plan.seconds)
        self.measures, self.stops = False, True
        self.tally.window_s = time.perf_counter() - started_at
        print("measured", flush=True)
        _, late = await asyncio.wait([*clients, *self.dead_tasks], timeout=END_TIMEOUT_S)
        if late:
            self._failed(Unexpected(f"{len(late)} answers did not come within {END_TIMEOUT_S:.0f} s"))
        return self._summed_up()

    async def _client(self, driver: Any, number: int) -> None:
        url = self.plan.urls[number % len(self.plan.urls)]
        connections = Connections()
        count = 0
        while not self.stops:
            started_at = time.perf_counter()
            try:  # whatever goes wrong is an error of this round, and fails it
                await driver.transact(connections, url, self.plan.participant_url, f"{number}-{count}")
            except Exception as error:
                self._failed(error)
                await _pass(RECONNECT_PAUSE_S)
                continue
            count += 1
            self.tally.confirmed += 1
            if self.measures:
                self.latencies_s.append(time.perf_counter() - started_at)
            if self.plan.dead_share:
                self._begin_dead(driver, url)

    def _begin_dead(self, driver: Any, url: str) -> None:
        self.dead_debt += self.plan.dead_share / (1 - self.plan.dead_share)
        if self.dead_debt >= 1:
            self.dead_debt -= 1
            task = asyncio.create_task(self._dead(driver, url))
            self.dead_tasks.add(task)

    async def _dead(self, driver: Any, url: str) -> None:
        try:
            await driver.transact_with_dead(Connections(), url)
            self.tally.cancelled += 1
        except Exception as error:
            self._failed(error)

    def _failed(self, error: Exception) -> None:
        self.tally.errors += 1
        self.tally.first_error = self.tally.first_error or f"{type(error).__name__}: {error}"

    def _summed_up(self) -> Tally:
        ordered = sorted(self.latencies_s)
        self.tally.in_window = len(ordered)
        if ordered:
            self.tally.p50_ms = 1000 * ordered[len(ordered) // 2]
            self.tally.p99_ms = 1000 * ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))]
        return self.tally


async def _pass(seconds: float) -> None:
    """Let the time of a measurement go by."""
    passed = asyncio.get_running_loop().create_future()
    asyncio.get_running_loop().call_later(seconds, passed.set_result, None)
    await passed


async def _main(plan: Plan) -> None:
    print(json.dumps(asdict(await Load(plan).run())), flush=True)


if __name__ == "__main__":
    uvloop.run(_main(Plan(**json.loads(sys.argv[1]))))
