"""The coordinator's clock: it never goes backwards, and whoever sets a clock makes no hold last longer."""

import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, Final

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app import clock
from app.clock import SLEW, DatabaseClock, MachineClock, Sample
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
    now = MachineClock()
    assert now() == about(STARTED_AT)
    machine.run_for(12.5)
    assert now() == about(STARTED_AT + 12.5)


@pytest.mark.parametrize("set_by_s", [-86_400.0, -0.5])
def test_it_never_goes_back_when_the_machines_time_is_set_back(machine: Machine, set_by_s: float) -> None:
    now = MachineClock()
    before = now()
    machine.wall += set_by_s
    assert now() == before
    machine.run_for(1.0)
    assert now() == about(before + 1.0)
    assert MachineClock()() == about(machine.wall), "the next process takes the time as it is then"


@pytest.mark.parametrize("set_by_s", [0.5, 600.0, 86_400.0])
def test_it_goes_forward_with_the_machines_time(machine: Machine, set_by_s: float) -> None:
    """The machine stood still, or started with a wrong time: a hold may have ended meanwhile, so it counts as ended."""
    now = MachineClock()
    before = now()
    machine.wall += set_by_s
    assert now() == about(before + set_by_s)
    assert now.steady() == before
    machine.wall -= set_by_s
    machine.run_for(1.0)
    assert now() == about(before + set_by_s + 1.0)
    assert now.steady() == about(before + 1.0)


def test_on_linux_holds_end_while_the_machine_sleeps(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine("linux", monkeypatch)
    now = MachineClock()
    machine.sleep_for(600.0)
    assert now() == about(STARTED_AT + 600.0)


def test_the_real_one_tells_the_time() -> None:
    before = time.time()
    assert before - 1.0 < MachineClock()() < time.time() + 1.0


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
    assert times == [about(STARTED_AT + 86_405.0)] * 5
    assert app.state.parts.clock() == times[0]


class Followed:
    """A database's clock, and the monotonic one of a process that follows it; they may go at different speeds."""

    def __init__(self) -> None:
        self.true, self.elapsed, self.speed = STARTED_AT, 0.0, 1.0

    def run_for(self, seconds: float) -> None:
        self.true += seconds
        self.elapsed += seconds * self.speed

    def ask(self, there_s: float, back_s: float) -> Sample:
        """A question that takes so long on its way there and back."""
        asked_at = self.elapsed
        self.run_for(there_s)
        said = self.true
        self.run_for(back_s)
        return Sample(time=said, asked_at=asked_at, answered_at=self.elapsed)

    def started(self) -> DatabaseClock:
        return DatabaseClock.started(self.ask(0.0, 0.0), elapsed=lambda: self.elapsed)


seconds = st.floats(0.0, 1000.0)
happenings = st.lists(
    st.tuples(st.just("run"), seconds, seconds)
    | st.tuples(st.just("ask"), seconds, seconds)
    | st.tuples(st.just("pause"), seconds, seconds)
    | st.tuples(st.just("late"), seconds, seconds),
    max_size=30,
)


@given(happenings)
def test_it_never_goes_back_and_is_never_ahead_of_a_clock_that_does_not(what: list[tuple[str, float, float]]) -> None:
    followed = Followed()
    clock, before = followed.started(), 0.0
    for name, first_s, second_s in what:
        match name:
            case "run":
                followed.run_for(first_s)
            case "pause":
                followed.true += first_s
            case "ask":
                clock.follow(followed.ask(first_s, second_s))
                assert clock() >= followed.true - second_s - 0.001, "it is behind by the way back at the most"
            case _:
                clock.not_before(followed.true - first_s)
        assert before <= clock() <= followed.true + 0.001
        before = clock()


@given(st.lists(st.tuples(st.floats(-500.0, 500.0), seconds, st.floats(0.0, 2.0)), max_size=30))
def test_it_never_goes_back_whatever_it_follows_does(what: list[tuple[float, float, float]]) -> None:
    followed = Followed()
    clock, before = followed.started(), 0.0
    for step_s, run_s, way_s in what:
        followed.true += step_s
        clock.follow(followed.ask(way_s, way_s))
        assert clock() >= before
        followed.run_for(run_s)
        assert clock() - before >= run_s * (1 - SLEW) - 0.001
        before = clock()


@pytest.mark.parametrize("speed", [1.0 + SLEW / 2, 1.0, 1.0 - SLEW / 2])
def test_a_machine_whose_clock_is_fast_or_slow_is_kept_to_the_databases(speed: float) -> None:
    followed = Followed()
    clock = followed.started()
    followed.speed = speed
    for _ in range(1000):
        followed.run_for(1.0)
        clock.follow(followed.ask(0.001, 0.001))
    assert clock() == pytest.approx(followed.true, rel=0.0, abs=0.005)


def test_one_that_is_ahead_goes_slower_until_it_has_been_caught_up_with() -> None:
    followed = Followed()
    clock = followed.started()
    followed.true -= 2.0
    assert clock.follow(followed.ask(0.0, 0.0)) == pytest.approx(2.0)
    followed.run_for(1000.0)
    assert clock.follow(followed.ask(0.0, 0.0)) == pytest.approx(1.0)
    followed.run_for(1000.0)
    assert clock.follow(followed.ask(0.0, 0.0)) == pytest.approx(0.0, abs=1e-6)
    followed.run_for(1000.0)
    assert clock() == pytest.approx(followed.true)


def test_a_slow_answer_moves_nothing_the_wrong_way() -> None:
    followed = Followed()
    clock = followed.started()
    assert clock.follow(followed.ask(30.0, 0.0)) == 0.0
    assert clock.follow(followed.ask(0.0, 30.0)) == 0.0
    assert clock() == pytest.approx(followed.true)
