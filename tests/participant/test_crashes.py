"""The crash matrix of the SDK: a participant dies at each point (mortal.py), and the next process once more.

Every point of every scenario is counted, and so is every commit, whose reply is lost to a process that lives on. It is
killed at each point at which something has just left it: those in between leave the same world, which
`test_what_was_not_committed_is_as_if_it_had_never_been` shows at every single one. Calls are repeated as the
coordinator does it, and rounds of the reaper as time does. On SQLite the next process is killed as well, after each of
the first faults: at the first thing that leaves it, the second, and so on in turn.

`inside`: effects are in the participant's database. `outside`: they are a gateway's, and the handlers two-step.
"""

import itertools
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from tests.harness.participant_app import METADATA, engine_for, service_on
from tests.participant.crashing_service import Drive, Fault, Ground, Point

HOUR_S: Final = 3601


async def confirmed(drive: Drive) -> None:
    assert (await drive.call("try")).ok
    assert (await drive.call("confirm")).ok
    assert (await drive.call("cancel")).problem == "already-confirmed"


async def confirmed_late(drive: Drive) -> None:
    assert (await drive.call("try")).ok
    drive.failures = 1
    assert (await drive.call("confirm")).ok


async def cancelled(drive: Drive) -> None:
    assert (await drive.call("try")).ok
    assert (await drive.call("cancel")).ok
    assert (await drive.call("try")).problem == "already-cancelled"


async def given_up(drive: Drive) -> None:
    """Nobody waits for Try's answer: Cancel may be the next that is heard."""
    await drive.call_once("try")
    assert (await drive.call("cancel")).ok
    assert (await drive.call("try")).problem == "already-cancelled"


async def cancelled_before(drive: Drive) -> None:
    """Cancel overtakes Try: the tombstone."""
    assert (await drive.call("cancel")).ok
    assert (await drive.call("try")).problem == "already-cancelled"
    assert (await drive.call("confirm")).problem == "already-cancelled"


async def refused(drive: Drive) -> None:
    drive.refuses = True
    assert (await drive.call("try")).problem == "refused"
    assert (await drive.call("cancel")).ok


async def refused_again(drive: Drive) -> None:
    """What the run that died did outside is still there when its repeat is refused."""
    drive.refuses_repeats = True
    await drive.call("try")
    assert (await drive.call("cancel")).ok


async def lapsed(drive: Drive) -> None:
    assert (await drive.call("try")).ok
    drive.pass_time(61)
    drive.decision = "cancel"
    await drive.reap()
    assert (await drive.call("confirm")).problem == "already-cancelled"
    assert (await drive.call("cancel")).ok


async def forgotten(drive: Drive) -> None:
    """Nobody knows the transaction: presumed abort."""
    assert (await drive.call("try")).ok
    drive.pass_time(61)
    drive.decision = "unknown"
    await drive.reap()


async def kept(drive: Drive) -> None:
    assert (await drive.call("try")).ok
    for decision in ("undecided", "confirm"):
        drive.pass_time(400)
        drive.decision = decision
        await drive.reap()
    assert (await drive.call("confirm")).ok


async def expired(drive: Drive) -> None:
    assert (await drive.call("try")).ok
    await _abandoned(drive)
    assert (await drive.call("confirm")).problem == "hold-expired"
    assert (await drive.call("cancel")).ok


async def acquired_again(drive: Drive) -> None:
    assert (await drive.call("try")).ok
    await _abandoned(drive)
    assert (await drive.call("confirm")).ok


async def _abandoned(drive: Drive) -> None:
    drive.pass_time(HOUR_S)
    drive.decision = "unreachable"
    await drive.reap()
    drive.pass_time(HOUR_S)
    await drive.reap()


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """`ends` is what the row says, whatever died; `tries` is how often Try took effect at the most."""

    happens: Callable[[Drive], Awaitable[None]]
    ends: str
    tries: int = 1
    options: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.happens.__name__


LEAVING: Final = {"committed", "gateway answered", "arrives"}
"""Points at which something has just left the process: a commit, an effect outside, and the answer to the last call."""
LIMITED: Final = {"hold_max_s": 3600}
SCENARIOS: Final = [
    Scenario(happens=confirmed, ends="confirmed"),
    Scenario(happens=confirmed_late, ends="confirmed"),
    Scenario(happens=cancelled, ends="cancelled"),
    Scenario(happens=given_up, ends="cancelled"),
    Scenario(happens=cancelled_before, ends="cancelled", tries=0),
    Scenario(happens=refused, ends="cancelled", tries=0),
    Scenario(happens=refused_again, ends="cancelled"),
    Scenario(happens=lapsed, ends="cancelled"),
    Scenario(happens=forgotten, ends="cancelled"),
    Scenario(happens=kept, ends="confirmed"),
    Scenario(happens=expired, ends="expired", options=LIMITED),
    Scenario(happens=acquired_again, ends="confirmed", tries=2, options=LIMITED | {"reacquire": True}),
]


@dataclass(slots=True)
class Count:
    """What was enumerated. `worlds`: the states in which a first fault leaves the world."""

    points: int = 0
    commits: int = 0
    worlds: int = 0
    second: int = 0
    runs: int = 0


class Matrix:
    def __init__(self, ground: Ground, scenario: Scenario, *, outside: bool) -> None:
        self._ground = ground
        self._scenario = scenario
        self._outside = outside
        self.count = Count()

    async def run(self, *faults: Point) -> Drive:
        self.count.runs += 1
        options = self._scenario.options | {"two_step": self._outside}
        drive = Drive(self._ground, faults, outside=self._outside, **options)
        try:
            await self._scenario.happens(drive)
            drive.fate.faults = drive.fate.faults[: drive.fate.happened]  # the rest is for looking
            seen = list(drive.fate.points), drive.fate.commits
            await self._check(drive)
            drive.fate.points, drive.fate.commits = seen
        except AssertionError as error:
            raise AssertionError(f"{self._scenario}, {faults}: {error}; {drive.told}") from error
        finally:
            await drive.bury()
        return drive

    async def _check(self, drive: Drive) -> None:
        for _ in range(2 if self._outside else 1):
            drive.pass_time(97)
            await drive.reap()
        scenario, branch = self._scenario, drive.branch
        branch.coordinator = drive.coordinator
        phase = await branch.phase()
        effects = await drive.service.effects(branch.transaction_id)
        assert phase == scenario.ends
        tries = scenario.tries if phase == "confirmed" else effects["try"]
        confirms = int(phase == "confirmed")
        assert effects["try"] == tries <= scenario.tries, f"effects are {effects}"
        assert (effects["confirm"], effects["cancel"]) == (confirms, tries - confirms), f"effects are {effects}"
        results = [answer.body for operation, answer in drive.told if operation == "try" and answer.ok]
        assert all(result == results[0] for result in results), "Try said different things"
        if drive.gateway is not None:
            outside = sorted(state for state in drive.gateway.state.values() if state != "void")
            assert outside == ["captured"] * confirms, f"outside is {drive.gateway.state}"

    async def once(self) -> dict[Point, Drive]:
        """Every point but those before which nothing has left the process since the last, and every commit."""
        whole = (await self.run()).fate
        self.count.points, self.count.commits = len(whole.points), whole.commits
        points = [*killed(whole.points), *((Fault.REPLY_LOST, n) for n in range(1, whole.commits + 1))]
        self.count.worlds = len(points)
        runs = {point: await self.run(point) for point in points}
        assert all(run.fate.happened for run in runs.values())
        for fault, last in ((Fault.KILLED, self.count.points), (Fault.REPLY_LOST, self.count.commits)):
            assert not (await self.run((fault, last + 1))).fate.happened, "there are more points than were counted"
        return runs

    async def twice(self, runs: dict[Point, Drive]) -> None:
        """After each first fault the next process is killed, too, at one point: the first, the second, … in turn."""
        for turn, (first, run) in enumerate(runs.items()):
            seconds = killed(run.fate.points)
            second = seconds[turn % len(seconds)]
            self.count.second += 1
            assert (await self.run(first, second)).fate.happened == 2


def killed(points: Sequence[str]) -> list[Point]:
    """Killed at the first point, and at each at which something has just left the process."""
    return [(Fault.KILLED, n) for n, point in enumerate(points, 1) if n == 1 or point in LEAVING]


@pytest.fixture
async def ground(url: str, kind: str, caplog: pytest.LogCaptureFixture) -> AsyncIterator[Ground]:
    caplog.set_level(logging.CRITICAL, logger="holdfast")
    engine = engine_for(url, kind)
    participant = service_on(engine).participant
    if isinstance(engine, AsyncEngine):
        async with engine.begin() as connection:
            await connection.run_sync(METADATA.create_all)
    else:
        METADATA.create_all(engine)
    await participant.create_table()
    yield Ground(engine)
    if isinstance(engine, AsyncEngine):
        await engine.dispose()
    else:
        engine.dispose()


@pytest.mark.parametrize(
    ("kind", "outside", "scenario"),
    [
        *itertools.product(["sqlite"], [False, True], SCENARIOS),
        *itertools.product(["postgresql+asyncpg"], [True], SCENARIOS),
        *itertools.product(["postgresql+asyncpg"], [False], SCENARIOS[:5]),
    ],
    ids=str,
)
async def test_whatever_dies_wherever_each_effect_happens_once(
    scenario: Scenario, ground: Ground, kind: str, outside: bool
) -> None:
    matrix = Matrix(ground, scenario, outside=outside)
    runs = await matrix.once()
    if kind == "sqlite":
        await matrix.twice(runs)
    print(f"{scenario}, {'outside' if outside else 'inside'}, on {kind}: {matrix.count}")
    assert matrix.count.points >= 8
    assert matrix.count.commits >= 1
    assert matrix.count.worlds >= 4


@pytest.mark.parametrize("kind", ["sqlite+aiosqlite", "postgresql+psycopg"])
@pytest.mark.parametrize("scenario", [SCENARIOS[0], SCENARIOS[3]], ids=str)
async def test_the_other_engines_let_it_die_as_well(scenario: Scenario, ground: Ground, kind: str) -> None:
    matrix = Matrix(ground, scenario, outside=True)
    await matrix.once()
    print(f"{scenario} on {kind}: {matrix.count}")
    assert matrix.count.worlds > 5


@pytest.mark.parametrize("kind", ["sqlite"])
@pytest.mark.parametrize("outside", [False, True], ids=["inside", "outside"])
async def test_what_was_not_committed_is_as_if_it_had_never_been(ground: Ground, kind: str, outside: bool) -> None:
    """Every single point of one scenario, within a database transaction too: the matrix rests on this."""
    matrix = Matrix(ground, SCENARIOS[0], outside=outside)
    after: dict[int, set[tuple[str, ...]]] = {}
    left = 0
    for number, point in enumerate((await matrix.run()).fate.points, 1):
        left += point in LEAVING
        run = await matrix.run((Fault.KILLED, number))
        after.setdefault(left, set()).add(tuple(run.fate.points))
    assert len(after) >= 5
    assert [points for points in after.values() if len(points) > 1] == []
