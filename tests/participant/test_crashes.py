"""The crash matrix of the SDK: a participant dies at each point (crashing_service.py), and the next process once more.

Every point of every scenario is counted, and so is every commit, whose reply is lost to a process that lives on. It is
killed at each point at which something has just left it: those in between leave the same state, which
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
from tests.harness.search_share import share
from tests.participant.crashing_service import CrashRun, Environment, Fault, Point

HOUR_S: Final = 3601


async def confirmed(run: CrashRun) -> None:
    assert (await run.call("try")).ok
    assert (await run.call("confirm")).ok
    assert (await run.call("cancel")).problem == "already-confirmed"


async def confirmed_late(run: CrashRun) -> None:
    assert (await run.call("try")).ok
    run.failures = 1
    assert (await run.call("confirm")).ok


async def cancelled(run: CrashRun) -> None:
    assert (await run.call("try")).ok
    assert (await run.call("cancel")).ok
    assert (await run.call("try")).problem == "already-cancelled"


async def given_up(run: CrashRun) -> None:
    """Nobody waits for Try's answer: Cancel may be the next that is heard."""
    await run.call_once("try")
    assert (await run.call("cancel")).ok
    assert (await run.call("try")).problem == "already-cancelled"


async def cancelled_before(run: CrashRun) -> None:
    """Cancel overtakes Try: the tombstone."""
    assert (await run.call("cancel")).ok
    assert (await run.call("try")).problem == "already-cancelled"
    assert (await run.call("confirm")).problem == "already-cancelled"


async def refused(run: CrashRun) -> None:
    run.refuses = True
    assert (await run.call("try")).problem == "refused"
    assert (await run.call("cancel")).ok


async def refused_again(run: CrashRun) -> None:
    """What the run that died did outside is still there when its repeat is refused."""
    run.refuses_repeats = True
    await run.call("try")
    assert (await run.call("cancel")).ok


async def lapsed(run: CrashRun) -> None:
    assert (await run.call("try")).ok
    run.pass_time(61)
    run.decision = "cancel"
    await run.reap()
    assert (await run.call("confirm")).problem == "already-cancelled"
    assert (await run.call("cancel")).ok


async def forgotten(run: CrashRun) -> None:
    """Nobody knows the transaction: presumed abort."""
    assert (await run.call("try")).ok
    run.pass_time(61)
    run.decision = "unknown"
    await run.reap()


async def kept(run: CrashRun) -> None:
    assert (await run.call("try")).ok
    for decision in ("undecided", "confirm"):
        run.pass_time(400)
        run.decision = decision
        await run.reap()
    assert (await run.call("confirm")).ok


async def expired(run: CrashRun) -> None:
    assert (await run.call("try")).ok
    await _abandoned(run)
    assert (await run.call("confirm")).problem == "hold-expired"
    assert (await run.call("cancel")).ok


async def acquired_again(run: CrashRun) -> None:
    assert (await run.call("try")).ok
    await _abandoned(run)
    assert (await run.call("confirm")).ok


async def _abandoned(run: CrashRun) -> None:
    run.pass_time(HOUR_S)
    run.decision = "unreachable"
    await run.reap()
    run.pass_time(HOUR_S)
    await run.reap()


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """`ends` is what the row says, whatever died; `tries` is how often Try took effect at the most."""

    happens: Callable[[CrashRun], Awaitable[None]]
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
    """What was enumerated. `states`: in how many a first fault leaves what outlives a process."""

    points: int = 0
    commits: int = 0
    states: int = 0
    second: int = 0
    runs: int = 0


class Matrix:
    def __init__(self, environment: Environment, scenario: Scenario, *, outside: bool) -> None:
        self._environment = environment
        self._scenario = scenario
        self._outside = outside
        self.count = Count()

    async def run(self, *faults: Point) -> CrashRun:
        self.count.runs += 1
        options = self._scenario.options | {"two_step": self._outside}
        run = CrashRun(self._environment, faults, outside=self._outside, **options)
        try:
            await self._scenario.happens(run)
            run.plan.faults = run.plan.faults[: run.plan.happened]  # the rest is for looking
            seen = list(run.plan.points), run.plan.commits
            await self._check(run)
            run.plan.points, run.plan.commits = seen
        except AssertionError as error:
            raise AssertionError(f"{self._scenario}, {faults}: {error}; {run.told}") from error
        finally:
            await run.bury()
        return run

    async def _check(self, run: CrashRun) -> None:
        for _ in range(2 if self._outside else 1):
            run.pass_time(97)
            await run.reap()
        scenario, branch = self._scenario, run.branch
        branch.coordinator = run.coordinator
        phase = await branch.phase()
        effects = await run.service.effects(branch.transaction_id)
        assert phase == scenario.ends
        tries = scenario.tries if phase == "confirmed" else effects["try"]
        confirms = int(phase == "confirmed")
        assert effects["try"] == tries <= scenario.tries, f"effects are {effects}"
        assert (effects["confirm"], effects["cancel"]) == (confirms, tries - confirms), f"effects are {effects}"
        results = [answer.body for operation, answer in run.told if operation == "try" and answer.ok]
        assert all(result == results[0] for result in results), "Try said different things"
        if run.gateway is not None:
            outside = sorted(state for state in run.gateway.state.values() if state != "void")
            assert outside == ["captured"] * confirms, f"outside is {run.gateway.state}"

    async def once(self) -> dict[Point, CrashRun]:
        """Every point but those before which nothing has left the process since the last, and every commit."""
        whole = (await self.run()).plan
        self.count.points, self.count.commits = len(whole.points), whole.commits
        points = [*killed(whole.points), *((Fault.REPLY_LOST, n) for n in range(1, whole.commits + 1))]
        self.count.states = len(points)
        runs = {point: await self.run(point) for point in share(points)}
        assert all(run.plan.happened for run in runs.values())
        for fault, last in ((Fault.KILLED, self.count.points), (Fault.REPLY_LOST, self.count.commits)):
            assert not (await self.run((fault, last + 1))).plan.happened, "there are more points than were counted"
        return runs

    async def twice(self, runs: dict[Point, CrashRun]) -> None:
        """After each first fault the next process is killed, too, at one point: the first, the second, … in turn."""
        for turn, (first, run) in enumerate(runs.items()):
            seconds = killed(run.plan.points)
            second = seconds[turn % len(seconds)]
            self.count.second += 1
            assert (await self.run(first, second)).plan.happened == 2


def killed(points: Sequence[str]) -> list[Point]:
    """Killed at the first point, and at each at which something has just left the process."""
    return [(Fault.KILLED, n) for n, point in enumerate(points, 1) if n == 1 or point in LEAVING]


@pytest.fixture
async def environment(url: str, kind: str, caplog: pytest.LogCaptureFixture) -> AsyncIterator[Environment]:
    caplog.set_level(logging.CRITICAL, logger="holdfast")
    engine = engine_for(url, kind)
    participant = service_on(engine).participant
    if isinstance(engine, AsyncEngine):
        async with engine.begin() as connection:
            await connection.run_sync(METADATA.create_all)
    else:
        METADATA.create_all(engine)
    await participant.create_table()
    yield Environment(engine)
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
    scenario: Scenario, environment: Environment, kind: str, outside: bool
) -> None:
    matrix = Matrix(environment, scenario, outside=outside)
    runs = await matrix.once()
    if kind == "sqlite":
        await matrix.twice(runs)
    print(f"{scenario}, {'outside' if outside else 'inside'}, on {kind}: {matrix.count}")
    assert matrix.count.points >= 8
    assert matrix.count.commits >= 1
    assert matrix.count.states >= 4


@pytest.mark.parametrize("kind", ["sqlite+aiosqlite", "postgresql+psycopg"])
@pytest.mark.parametrize("scenario", [SCENARIOS[0], SCENARIOS[3]], ids=str)
async def test_the_other_engines_let_it_die_as_well(scenario: Scenario, environment: Environment, kind: str) -> None:
    matrix = Matrix(environment, scenario, outside=True)
    await matrix.once()
    print(f"{scenario} on {kind}: {matrix.count}")
    assert matrix.count.states > 5


@pytest.mark.parametrize("kind", ["sqlite"])
@pytest.mark.parametrize("outside", [False, True], ids=["inside", "outside"])
async def test_what_was_not_committed_is_as_if_it_had_never_been(
    environment: Environment, kind: str, outside: bool
) -> None:
    """Every single point of one scenario, within a database transaction too: the matrix rests on this."""
    matrix = Matrix(environment, SCENARIOS[0], outside=outside)
    after: dict[int, set[tuple[str, ...]]] = {}
    left = 0
    for number, point in enumerate((await matrix.run()).plan.points, 1):
        left += point in LEAVING
        run = await matrix.run((Fault.KILLED, number))
        after.setdefault(left, set()).add(tuple(run.plan.points))
    assert len(after) >= 5
    assert [points for points in after.values() if len(points) > 1] == []
