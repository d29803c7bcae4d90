"""How a coordinator's clock is kept to the database's: what is said, what is measured, and when nobody answers."""

import asyncio
import logging
from typing import Final

import pytest

from app.clock import DatabaseClock, MachineClock, Sample
from app.maintenance import clock_sync
from app.maintenance.clock_sync import FIRST_SAMPLES, ClockSync, asks_the_machine, start_clock
from app.metrics import Metrics
from app.storage.errors import DatabaseUnavailableError

NOW: Final = 1_700_000_000.0
DAY_S: Final = 86_400.0


class Machines:
    """The database's machine and this one. The test moves time on."""

    def __init__(self) -> None:
        self.elapsed = 5_000.0
        self.database = NOW
        self.wall = NOW
        self.way_s = 0.0
        self.is_down = False
        self.asked = 0

    def run_for(self, seconds: float) -> None:
        self.elapsed += seconds
        self.database += seconds
        self.wall += seconds

    def pause_for(self, seconds: float) -> None:
        """This machine stands still, with all its clocks."""
        self.database += seconds

    async def ask(self) -> Sample:
        self.asked += 1
        if self.is_down:
            raise DatabaseUnavailableError("down")
        asked_at = self.elapsed
        self.run_for(self.way_s)
        said = self.database
        self.run_for(self.way_s)
        return Sample(time=said, asked_at=asked_at, answered_at=self.elapsed)

    async def start(self) -> tuple[DatabaseClock, ClockSync, Metrics]:
        clock = await start_clock(self.ask, lambda: self.elapsed)
        metrics = Metrics()
        return clock, ClockSync(clock=clock, ask=self.ask, metrics=metrics, wall=lambda: self.wall), metrics


@pytest.fixture
def machines() -> Machines:
    return Machines()


def ahead_s(metrics: Metrics, which: str) -> float | None:
    return metrics.registry.get_sample_value("holdfast_clock_ahead_seconds", {"clock": which})


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    """The names and fields of what was logged."""
    return [" ".join(record.getMessage().split()[:2]) for record in caplog.records if record.levelno > logging.DEBUG]


@pytest.mark.parametrize("off_s", [31 * DAY_S, -31 * DAY_S, 0.4])
async def test_the_machines_clock_counts_for_nothing(
    off_s: float, machines: Machines, caplog: pytest.LogCaptureFixture
) -> None:
    machines.wall += off_s
    clock, sync, metrics = await machines.start()
    assert clock() == NOW
    for _ in range(3):
        machines.run_for(10.0)
        assert await sync.check() == clock() == machines.database
    assert ahead_s(metrics, "machine") == pytest.approx(off_s)
    assert ahead_s(metrics, "coordinator") == 0.0
    assert said(caplog) == ([f"event=clock_off by_s={off_s:.1f}"] if abs(off_s) >= 1.0 else [])


async def test_what_was_said_is_said_again_when_it_changes(
    machines: Machines, caplog: pytest.LogCaptureFixture
) -> None:
    _, sync, _ = await machines.start()
    for step_s in (300.0, 0.2, -300.0, 0.0):
        machines.wall += step_s
        await sync.check()
    assert said(caplog) == ["event=clock_off by_s=300.0", "event=clock_off by_s=0.2"]


async def test_after_a_pause_of_the_machine_it_catches_up_at_once(
    machines: Machines, caplog: pytest.LogCaptureFixture
) -> None:
    clock, sync, metrics = await machines.start()
    machines.pause_for(600.0)
    assert clock() == NOW, "nothing here tells of it"
    assert await sync.check() == NOW, "what is over its time is kept for the pause; too long harms nobody"
    assert clock() == NOW + 600.0
    assert said(caplog) == ["event=clock_moved by_s=600.0", "event=clock_off by_s=-600.0"]
    assert (ahead_s(metrics, "coordinator"), ahead_s(metrics, "machine")) == (-600.0, -600.0)
    await sync.check()
    assert ahead_s(metrics, "coordinator") == 0.0


async def test_when_the_databases_clock_is_set_back_it_goes_slower_and_purges_by_the_other(
    machines: Machines, caplog: pytest.LogCaptureFixture
) -> None:
    clock, sync, metrics = await machines.start()
    machines.database -= 60.0
    assert await sync.check() == NOW - 60.0
    assert clock() == NOW
    machines.run_for(10_000.0)
    assert await sync.check() == NOW + 9_940.0
    assert clock() == pytest.approx(NOW + 9_990.0)
    assert ahead_s(metrics, "coordinator") == pytest.approx(50.0)
    assert said(caplog)[0] == "event=clock_ahead by_s=60.0"
    assert "event=clock_moved" not in " ".join(said(caplog))


async def test_when_the_databases_clock_is_set_far_ahead_nothing_is_purged_for_it(machines: Machines) -> None:
    clock, sync, _ = await machines.start()
    machines.database += 31 * DAY_S
    assert await sync.check() == NOW
    assert clock() == NOW + 31 * DAY_S


async def test_while_the_database_is_away_it_goes_on_by_itself(machines: Machines) -> None:
    clock, sync, _ = await machines.start()
    machines.is_down = True
    machines.run_for(1000.0)
    with pytest.raises(DatabaseUnavailableError):
        await sync.check()
    assert clock() == NOW + 1000.0


async def test_it_does_not_start_with_a_time_that_nobody_vouches_for(machines: Machines) -> None:
    machines.is_down = True
    with pytest.raises(DatabaseUnavailableError):
        await machines.start()


async def test_of_the_first_answers_the_quickest_counts(machines: Machines) -> None:
    ways = [3.0, 0.5, 0.25, 2.0, 4.0]
    assert len(ways) == FIRST_SAMPLES

    async def ask() -> Sample:
        machines.way_s = ways.pop(0)
        return await machines.ask()

    clock = await start_clock(ask, lambda: machines.elapsed)
    assert machines.database - clock() == pytest.approx(0.25)


async def test_it_is_checked_until_it_is_stopped_whatever_the_database_says(
    machines: Machines, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clock_sync, "PAUSE_S", 0.0)
    clock, _, metrics = await machines.start()
    seen = asyncio.Event()

    async def ask() -> Sample:
        machines.is_down = machines.asked % 2 == 0
        if machines.asked == FIRST_SAMPLES + 6:
            seen.set()
        return await machines.ask()

    sync = ClockSync(clock=clock, ask=ask, metrics=metrics, wall=lambda: machines.wall)
    machines.pause_for(7.0)
    await sync.start()
    async with asyncio.timeout(20):
        await seen.wait()
    await sync.stop()
    assert clock() == NOW + 7.0


@pytest.mark.parametrize("step_s", [31 * DAY_S, 3.0, -3.0, -31 * DAY_S])
async def test_without_a_server_the_machines_clock_is_followed_and_nothing_is_purged_for_a_step(
    step_s: float, machines: Machines, caplog: pytest.LogCaptureFixture
) -> None:
    clock = MachineClock(lambda: machines.wall, elapsed=lambda: machines.elapsed)
    metrics = Metrics()
    ask = asks_the_machine(lambda: machines.wall, lambda: machines.elapsed)
    sync = ClockSync(clock=clock, ask=ask, metrics=metrics, wall=lambda: machines.wall)
    machines.wall += step_s
    assert await sync.check() == NOW + min(step_s, 0.0)
    assert clock() == NOW + max(step_s, 0.0)
    assert ahead_s(metrics, "coordinator") == -step_s
    assert said(caplog) == [f"event=clock_{'moved' if step_s > 0 else 'ahead'} by_s={abs(step_s):.1f}"]
