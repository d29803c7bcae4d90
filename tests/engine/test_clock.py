"""The coordinator's clock: nobody who sets the machine's time moves a deadline or a hold."""

import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, Final

import httpx
import pytest

from app import clock
from app.clock import anchored_clock
from app.engine.coordinator import Begin
from app.main import create_app
from app.protocol.values import Branch
from app.settings import Settings
from app.storage.calls import list_calls

STARTED_AT: Final = 1_700_000_000.0
PLATFORMS: Final = ["linux", "darwin", "win32"]


def about(seconds: float) -> Any:
    """These seconds since the epoch, to the millisecond."""
    return pytest.approx(seconds, rel=0.0, abs=0.001)


class Machine:
    """A machine whose time is set, and which sleeps, when the test says so. Only Linux's clock counts the sleep."""

    def __init__(self, platform: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self.wall = STARTED_AT
        self.awake_s = 5_000.0
        self.asleep_s = 300.0
        its_time = SimpleNamespace(time=lambda: self.wall, monotonic=lambda: self.awake_s)
        if platform == "linux":
            clocks: dict[int, Callable[[], float]] = {1: its_time.monotonic, 7: lambda: self.awake_s + self.asleep_s}
            its_time.CLOCK_MONOTONIC, its_time.CLOCK_BOOTTIME = clocks
            its_time.clock_gettime = lambda which: clocks[which]()
        monkeypatch.setattr(clock, "time", its_time)
        monkeypatch.setattr(clock, "sys", SimpleNamespace(platform=platform))

    def run_for(self, seconds: float) -> None:
        self.wall += seconds
        self.awake_s += seconds

    def sleep_for(self, seconds: float) -> None:
        self.wall += seconds
        self.asleep_s += seconds


@pytest.fixture(params=PLATFORMS)
def machine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(request.param, monkeypatch)


def test_it_starts_with_the_wall_clock_and_goes_on_as_time_does(machine: Machine) -> None:
    now = anchored_clock()
    assert now() == about(STARTED_AT)
    machine.run_for(12.5)
    assert now() == about(STARTED_AT + 12.5)


@pytest.mark.parametrize("set_by_s", [-86_400.0, -0.5, 0.5, 86_400.0])
def test_it_does_not_follow_when_the_machines_time_is_set(machine: Machine, set_by_s: float) -> None:
    now = anchored_clock()
    before = now()
    machine.wall += set_by_s
    assert now() == before
    machine.run_for(1.0)
    assert now() == about(before + 1.0)
    assert anchored_clock()() == about(machine.wall), "the next process takes the time as it is then"


def test_on_linux_holds_end_while_the_machine_sleeps(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine("linux", monkeypatch)
    now = anchored_clock()
    machine.sleep_for(600.0)
    assert now() == about(STARTED_AT + 600.0)


def test_the_real_one_tells_the_time() -> None:
    before = time.time()
    assert before - 1.0 < anchored_clock()() < time.time() + 1.0


async def test_a_process_does_everything_by_it(machine: Machine, sqlite_url: str) -> None:
    settings = Settings(database_url=sqlite_url, participants={"car": {"base_url": "http://localhost:9000"}})
    app = create_app(settings, transport=httpx.MockTransport(lambda _: httpx.Response(200, json={})))
    async with app.router.lifespan_context(app):
        machine.wall += 86_400.0
        machine.run_for(5.0)
        begin = Begin(branches=(Branch(name="car", participant="car"),), timeout_s=30.0)
        begun = await app.state.parts.coordinator.begin(begin)
        ended = await app.state.parts.coordinator.wait(begun.id, lambda each: each.finished, 30.0)
        calls = await app.state.parts.journal.read(list_calls, begun.id, 9, 0)
    times = [ended.created_at, ended.decided_at, ended.finished_at, *(call.started_at for _, call in calls)]
    assert times == [about(STARTED_AT + 5.0)] * 5
    assert app.state.parts.clock() == times[0]
