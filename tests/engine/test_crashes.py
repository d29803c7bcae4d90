"""The crash matrix: a coordinator dies at each of its awaits, before and after each commit; the next one dies as well.

Every await of every scenario is counted, and so is every commit, whose reply is lost to a process that lives on. The
first await of each kind (processes.Moment) is where the process is killed: those behind it leave the same state, which
`test_equal_moments_leave_equal_states` shows at every single await. Another process is started at once, recovers, and
brings about the same end.

That one is killed, too, on SQLite: in one scenario whenever something has left it, after each of the first faults; in
the others once for each first fault, at the first thing that leaves it, the second, and so on in turn.
"""

import gc
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import pytest

from holdfast.wire import Operation
from tests.engine.crash_run import CrashRun, Environment, Scenario
from tests.engine.processes import Fault, Moment, Point
from tests.harness.network import HOLDS, SILENT, Reply
from tests.harness.search_share import share
from tests.harness.virtual_time import pass_time

TRY, CONFIRM, CANCEL, ACTION = Operation.TRY, Operation.CONFIRM, Operation.CANCEL, Operation.ACTION
REFUSES = Reply(status=409, body={"detail": "sold out"})
REFUSES_FOR_GOOD = Reply(
    status=409,
    body={"type": "/problems/refused", "detail": "no money"},
    headers={"Content-Type": "application/problem+json"},
)
BUSY = Reply(status=503)
BUSY_FOR_LONG = Reply(status=503, headers={"Retry-After": "1"})
GONE = Reply(status=404)
RUNS_BETWEEN_COLLECTIONS: Final = 50
THREE: Final = ("flight", "hotel", "car")
SAGA: Final = {
    "order": "compensable",
    "goods": "compensable",
    "charge": "pivot",
    "mail": "retryable",
    "parcel": "retryable",
}


async def retries(crash_run: CrashRun, transaction_id: str) -> None:
    """An operator has what hangs tried again, once the participant has been repaired."""
    await _until_hung(crash_run, transaction_id)
    crash_run.network.script.clear()
    answer = await crash_run.insist("retry", "POST", f"/v1/admin/transactions/{transaction_id}/retry")
    assert answer.status == 202 or answer.problem == "already-finished", answer


async def resolves(crash_run: CrashRun, transaction_id: str) -> None:
    """An operator does by hand what the participant doesn't, and says so."""
    await _until_hung(crash_run, transaction_id)
    crash_run.network.settle_by_hand(transaction_id, "hotel", CONFIRM)
    path = f"/v1/admin/transactions/{transaction_id}/branches/hotel/resolve"
    answer = await crash_run.insist("resolve", "POST", path, {"as": "confirmed", "reason": "booked by telephone"})
    assert answer.status == 200 or answer.problem in ("branch-finished", "already-finished"), answer


async def gives_up(crash_run: CrashRun, transaction_id: str) -> None:
    """An operator resolves a branch against the decision."""
    await _until_hung(crash_run, transaction_id)
    crash_run.network.settle_by_hand(transaction_id, "hotel", CANCEL)
    path = f"/v1/admin/transactions/{transaction_id}/branches/hotel/resolve"
    answer = await crash_run.insist("resolve", "POST", path, {"as": "cancelled", "reason": "the hotel is gone"})
    assert answer.status == 200 or answer.problem in ("branch-finished", "already-finished"), answer


async def cancels(crash_run: CrashRun, transaction_id: str) -> None:
    """The initiator thinks better of it."""
    answer = await crash_run.insist("cancel", "POST", f"/v1/transactions/{transaction_id}/cancel")
    assert answer.status == 200, answer


async def _until_hung(crash_run: CrashRun, transaction_id: str) -> None:
    while not (await crash_run.get(transaction_id))["hung"]:
        await pass_time(0.5)


SCENARIOS: Final = [
    Scenario(name="confirms", phase="confirmed"),
    Scenario(name="confirms one by one", phase="confirmed", branches=THREE, try_order="sequential"),
    Scenario(
        name="is refused",
        phase="cancelled",
        reason=("refused", "hotel"),
        script={("hotel", TRY): [REFUSES]},
        branches=THREE,
    ),
    Scenario(
        name="is refused while a Try is on its way",
        phase="cancelled",
        reason=("refused", "hotel"),
        script={("hotel", TRY): [REFUSES], ("flight", TRY): [Reply(travel_s=3.0)]},
    ),
    Scenario(
        name="is never answered",
        phase="cancelled",
        reason=("timed_out", "hotel"),
        timeout_s=3.0,
        script={("hotel", TRY): [SILENT]},
    ),
    Scenario(
        name="is not held in time",
        phase="cancelled",
        reason=("timed_out", "hotel"),
        timeout_s=2.5,
        script={("hotel", TRY): [BUSY_FOR_LONG]},
    ),
    Scenario(
        name="a saga ends well",
        phase="confirmed",
        branches=("order", "goods", "charge", "mail", "parcel"),
        kinds=SAGA,
        try_order="sequential",
        undo="reverse",
    ),
    Scenario(
        name="a saga's pivot refuses",
        phase="cancelled",
        reason=("refused", "charge"),
        script={("charge", ACTION): [REFUSES_FOR_GOOD]},
        branches=("order", "goods", "charge", "mail"),
        kinds=SAGA,
        try_order="sequential",
        undo="reverse",
    ),
    Scenario(
        name="a pivot's answers are lost and it is withdrawn",
        phase="confirmed",
        timeout_s=3.0,
        script={("charge", ACTION): [SILENT]},
        branches=("hotel", "goods", "charge", "mail"),
        kinds=SAGA,
    ),
    Scenario(
        name="a pivot is never reached and is withdrawn",
        phase="cancelled",
        reason=("timed_out", "charge"),
        timeout_s=3.0,
        script={("charge", ACTION): [BUSY]},
        branches=("hotel", "goods", "charge", "mail"),
        kinds=SAGA,
    ),
    Scenario(
        name="a hold is too short",
        phase="cancelled",
        reason=("hold_expired", "flight"),
        script={("flight", TRY): [Reply(headers={"Tcc-Hold-Ttl": "3"})], ("hotel", TRY): [BUSY_FOR_LONG]},
    ),
    Scenario(
        name="a hold ends before the decision is durable",
        phase="cancelled",
        reason=("hold_expired", "flight"),
        script={("flight", TRY): [Reply(headers={"Tcc-Hold-Ttl": "3"})]},
        decisions_stall_s=3.0,
    ),
    Scenario(name="Confirm works the second time", phase="confirmed", script={("hotel", CONFIRM): [BUSY, Reply()]}),
    Scenario(
        name="Cancel works the third time",
        phase="cancelled",
        reason=("refused", "hotel"),
        script={("hotel", TRY): [REFUSES], ("flight", TRY): [BUSY, HOLDS], ("flight", CANCEL): [BUSY, SILENT, Reply()]},
    ),
    Scenario(
        name="hangs, and works again",
        phase="confirmed",
        script={("hotel", CONFIRM): [GONE, GONE, Reply()]},
        excused=frozenset({"nobody_refuses_what_was_decided"}),
    ),
    Scenario(
        name="hangs, and is tried again",
        phase="confirmed",
        script={("hotel", CONFIRM): [GONE]},
        actors=(retries,),
        excused=frozenset({"nobody_refuses_what_was_decided"}),
    ),
    Scenario(
        name="hangs, and is resolved",
        phase="confirmed",
        reason=("operator", "hotel"),
        script={("hotel", CONFIRM): [GONE]},
        actors=(resolves,),
        excused=frozenset({"nobody_refuses_what_was_decided", "history_explains_the_end"}),
    ),
    Scenario(
        name="hangs, and is resolved against the decision",
        phase="confirmed",
        reason=("operator", "hotel"),
        outcome="mixed",
        script={("hotel", CONFIRM): [GONE]},
        actors=(gives_up,),
        excused=frozenset(
            {
                "nobody_refuses_what_was_decided",
                "history_explains_the_end",
                "everything_finished",
                "participants_agree",
                "answers_make_sense",
            }
        ),
    ),
    Scenario(
        name="is cancelled by who began it",
        phase="cancelled",
        reason=("requested", None),
        answer_at="record",
        script={("hotel", TRY): [Reply(delay_s=1.0)]},
        actors=(cancels,),
    ),
    Scenario(name="is begun twice at once", phase="confirmed", clients=2),
]


EACH_SECOND: Final = "confirms"


@dataclass(slots=True)
class Count:
    """What was enumerated. `states`: first faults that leave different states; `second`: faults after them."""

    awaits: int = 0
    commits: int = 0
    states: int = 0
    second: int = 0
    runs: int = 0


class Matrix:
    """All faults of one scenario on one database."""

    def __init__(self, environment: Environment, scenario: Scenario) -> None:
        self._environment = environment
        self._scenario = scenario
        self.count = Count()

    def run(self, *faults: Point) -> CrashRun:
        """One run, of which nothing may be wrong."""
        crash_run = CrashRun(self._environment, self._scenario, faults).run()
        self.count.runs += 1
        if self.count.runs % RUNS_BETWEEN_COLLECTIONS == 0:
            gc.collect()
        assert not crash_run.problems, f"{faults}: {crash_run.problems}; {crash_run.events}"
        return crash_run

    def once(self, kind: Callable[[Moment], object]) -> dict[Point, CrashRun]:
        """Every await but those of a kind that has been before, and every commit; makes sure that there are no more."""
        whole = self.run().plan
        self.count.awaits, self.count.commits = len(whole.moments), len(whole.commits)
        points = [*killed(whole.moments, kind), *((Fault.REPLY_LOST, n) for n in range(1, len(whole.commits) + 1))]
        self.count.states = len(points)
        runs = {point: self.run(point) for point in share(points)}
        assert all(run.plan.all_happened for run in runs.values())
        for fault, last in ((Fault.KILLED, self.count.awaits), (Fault.REPLY_LOST, self.count.commits)):
            assert not self.run((fault, last + 1)).plan.all_happened, "there are more points than were counted"
        return runs

    def twice(self, runs: dict[Point, CrashRun], *, each: bool) -> None:
        """After each first fault, the next process is killed at `each` point at which something has left it, or at one.

        Which one is taken in turn: the first after the first fault, the second after the second, and so on.
        """
        for turn, (first, run) in enumerate(runs.items()):
            seconds = killed(run.plan.moments, leaves)[1:]  # before the first, it leaves what it found
            for second in seconds if each else seconds[turn % len(seconds) :][:1]:
                self.count.second += 1
                assert self.run(first, second).plan.all_happened


def anything(moment: Moment) -> object:
    return moment


def leaves(moment: Moment) -> object:
    return moment.left


def killed(moments: Sequence[Moment], kind: Callable[[Moment], object]) -> list[Point]:
    """Killed at the first moment of each kind."""
    first: dict[object, int] = {}
    for number, moment in enumerate(moments, 1):
        first.setdefault(kind(moment), number)
    return [(Fault.KILLED, number) for number in first.values()]


@pytest.fixture
def environment(database_url: str, caplog: pytest.LogCaptureFixture) -> Iterator[Environment]:
    environment = Environment(database_url)
    caplog.set_level(logging.CRITICAL)
    gc.disable()  # hundreds of dead processes are let go of by hand
    yield environment
    gc.enable()
    environment.close()


@pytest.mark.parametrize("scenario", SCENARIOS, ids=str)
@pytest.mark.parametrize("database_url", ["sqlite", "postgresql"], indirect=True)
def test_whatever_dies_wherever_nothing_is_stranded_mixed_or_taken_back(
    scenario: Scenario, environment: Environment
) -> None:
    matrix = Matrix(environment, scenario)
    runs = matrix.once(anything)
    if environment.is_embedded:
        matrix.twice(runs, each=scenario.name == EACH_SECOND)
    print(f"{scenario} on {environment.engine.dialect.name}: {matrix.count}")
    assert matrix.count.awaits > 50
    assert matrix.count.commits >= 4
    assert matrix.count.states > 15


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_equal_moments_leave_equal_states(environment: Environment) -> None:
    """Every single await of one scenario: the matrix rests on this."""
    matrix = Matrix(environment, SCENARIOS[0])
    after: dict[Moment, set[tuple[str, ...]]] = {}
    for number, moment in enumerate(matrix.run().plan.moments, 1):
        run = matrix.run((Fault.KILLED, number))
        after.setdefault(moment, set()).add(tuple(run.events))
    assert len(after) > 10
    assert [events for events in after.values() if len(events) > 1] == []


@pytest.mark.parametrize("scenario", [SCENARIOS[0], SCENARIOS[2]], ids=str)
@pytest.mark.parametrize("database_url", ["mariadb"], indirect=True)
def test_on_mariadb_it_dies_whenever_something_has_left_it(scenario: Scenario, environment: Environment) -> None:
    """What happens at a crash is decided above the database: the coarser form must do on one more."""
    matrix = Matrix(environment, scenario)
    matrix.once(leaves)
    assert matrix.count.states > 10
