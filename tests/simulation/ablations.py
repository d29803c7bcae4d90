"""Safeguards taken out one by one, to see whether the simulation notices. `make ablations`.

Each ablation changes the code under test in a process of its own, and seeds are run until one fails. One that nothing
catches is either not tested or not needed.
"""

import argparse
import gc
import multiprocessing
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Final

from sqlalchemy import Connection, update

from app.clock import DatabaseClock
from app.engine import commands as engine_commands
from app.engine import recovery, run
from app.maintenance import clock_sync
from app.protocol import kinds, steps
from app.protocol.messages import Step
from app.protocol.values import BranchPhase
from app.storage import commands, group_commit, queries, tables, transactions
from app.storage.bulk import EXPECTED
from holdfast.fence import execution, rows
from holdfast.fence.execution import Happening, Outcome
from holdfast.fence.steps import Event, Refusal, Refuse, Run, State
from holdfast.participant import inquiry as inquiries
from holdfast.participant import mounted
from holdfast.participant.reaper import Reaper
from holdfast.wire import Decision, Operation
from tests.simulation import databases, world
from tests.simulation.participant import GATEWAY
from tests.simulation.scheduler import current
from tests.simulation.seeds import warm_up

SEEDS_MAX: Final = 1000
LOST_COMMITS: Final = 3

Apply = Callable[[], None]
ABLATIONS: Final[dict[str, tuple[str, Apply]]] = {}


def ablation(what: str) -> Callable[[Apply], Apply]:
    """Register a safeguard, in words, by the function that takes it out."""

    def register(apply: Apply) -> Apply:
        ABLATIONS[apply.__name__] = (what, apply)
        return apply

    return register


# --- the coordinator ---------------------------------------------------------------------------------------------


@ablation("the decision is durable before a call leaves")
def decision_saved_first() -> None:
    advance = run.advance

    def hasty(before: Any, *rest: Any) -> Step:
        step = advance(before, *rest)
        decides = step.transaction.decision is not before.decision
        return replace(step, must_save=False) if decides and not step.rests else step

    run.advance = hasty


@ablation("the record is durable before the first Try")
def record_saved_first() -> None:
    write = transactions.record

    def record(connection: Any, items: Any) -> Any:
        kept = transactions.insert_all
        transactions.insert_all = lambda *_: None
        try:
            return write(connection, items)
        finally:
            transactions.insert_all = kept

    transactions.record = record


@ablation("a save names the version that it saw")
def version_check() -> None:
    update_all = transactions.update_all

    def update(connection: Any, table: Any, changed: Any) -> int:
        without = [{name: value for name, value in row.items() if name != f"{EXPECTED}version"} for row in changed]
        return update_all(connection, table, without)

    transactions.update_all = update


@ablation("a claim raises the version")
def claim_raises_version() -> None:
    update_all, claim = transactions.update_all, transactions.claim

    def update(connection: Connection, table: Any, changed: Any) -> int:
        is_claim = set(changed[0]) == {f"{EXPECTED}id", f"{EXPECTED}version", "version", "wake_at"}
        kept = [{name: value for name, value in row.items() if name != "version"} for row in changed]
        return update_all(connection, table, kept if is_claim else changed)

    def quiet(connection: Connection, items: Any) -> Any:
        return [[replace(each, version=each.version - 1) for each in claimed] for claimed in claim(connection, items)]

    transactions.update_all = update
    transactions.claim = quiet


@ablation("others leave a transaction alone while its lease runs")
def lease() -> None:
    claim = transactions.Claim

    def any_time(*, due_by: float | None, **rest: Any) -> Any:
        return claim(due_by=None if due_by is None else due_by + 1e9, **rest)

    recovery.transactions = _Changed(transactions, Claim=any_time)


@ablation("a branch whose Try was not answered is cancelled too")
def cancel_of_the_unanswered() -> None:
    _cancelled_at_once(BranchPhase.TRYING)


@ablation("a branch that refused is cancelled too")
def cancel_of_the_refused() -> None:
    _cancelled_at_once(BranchPhase.REFUSED)


def _cancelled_at_once(phase: BranchPhase) -> None:
    for kind in kinds.KINDS:
        kinds.FOLLOWS[kind, Decision.CANCEL, phase] = BranchPhase.CANCELLED


@ablation("a Cancel waits until this replica's own Try has ended")
def cancel_waits_for_try() -> None:
    follow = steps._follow

    def at_once(decision: Any, branch: Any) -> Any:
        return follow(decision, replace(branch, calling=None))

    steps._follow = at_once


@ablation("Confirm and Cancel are repeated until they are acknowledged")
def repeats() -> None:
    answered = kinds.ANSWERED
    for phase, after in (
        (BranchPhase.CONFIRMING, BranchPhase.CONFIRMED),
        (BranchPhase.CANCELLING, BranchPhase.CANCELLED),
    ):
        answered[phase, steps.Answer.UNANSWERED] = after


@ablation("no Confirm after the deadline or a hold's end")
def hold_limits() -> None:
    steps._hold_until = lambda transaction, branch, answered, policy: transaction.deadline + 1e9


@ablation("no decision to confirm becomes durable after the deadline or a hold's end")
def late_decisions_are_not_saved() -> None:
    group_commit._is_late = lambda write: False


@ablation("the database refuses a decision to confirm that comes after the deadline or a hold's end")
def database_refuses_the_late() -> None:
    run.Run._limit_of = lambda self, step: None


@ablation("a replica's clock starts with the database's time")
def clock_starts_with_the_databases() -> None:
    def started(sample: Any, *, elapsed: Callable[[], float]) -> DatabaseClock:
        return DatabaseClock(current().clock(), elapsed=elapsed)

    DatabaseClock.started = started


@ablation("a replica's clock is checked again and again")
def clock_is_checked() -> None:
    DatabaseClock.follow = lambda self, sample: 0.0


@ablation("only what has surely been kept long enough is purged, whatever the machine's clock says")
def purge_by_a_sure_time() -> None:
    check = clock_sync.ClockSync.check

    async def by_the_machines(self: clock_sync.ClockSync) -> float:
        await check(self)
        return self._wall()

    clock_sync.ClockSync.check = by_the_machines


@ablation("what can't end is listed as hung")
def hung_is_noticed() -> None:
    steps._notice_hung = lambda transaction, now, policy: transaction


@ablation("a decision ends the hang of an unanswered Try")
def decision_ends_silence() -> None:
    steps._no_longer_silent = lambda branch: branch


@ablation("an idempotency key is unique")
def key_is_unique() -> None:
    transactions._recorded_under = lambda connection, keys: {}
    with databases.coordinator_engine().begin() as connection:
        connection.exec_driver_sql("DROP INDEX uq_transactions_idempotency_key")


@ablation("a commit is on disk when it is acknowledged (a crash loses the last ones)")
def fsync() -> None:
    def committed(self: world.World) -> None:
        self.snapshots.append(self.database.serialize())
        del self.snapshots[: -LOST_COMMITS - 1]

    def lose(self: world.World) -> None:
        if self.snapshots:
            self.database.deserialize(self.snapshots[0])
            self.snapshots.clear()

    world.World.committed = committed
    world.World.replica_died = lose


@ablation("a command of the inbox is heard once, however often its owner is told of it")
def heard_once() -> None:
    def ask(self: run.Run, pending: run.PendingCommand) -> None:
        self._commands.append(pending)
        self._arrived.set()

    def write(connection: Connection, heard: Any) -> None:
        for each in heard:
            outcome = commands.APPLIED if each.objection is None else each.objection.value
            connection.execute(update(tables.commands).where(tables.commands.c.id == each.id).values(outcome=outcome))

    run.Run.ask = ask
    transactions.write_outcomes = write


@ablation("a command's outcome is written by the save that carries it out")
def outcome_with_the_save() -> None:
    def write(connection: Connection, ids: Any) -> list[None]:
        waiting = update(tables.commands).where(tables.commands.c.id.in_(ids))
        connection.execute(waiting.values(outcome=commands.APPLIED))
        return [None] * len(ids)

    def ask(self: run.Run, pending: run.PendingCommand) -> None:
        if pending.id is not None and pending.id not in self._known:
            self._known.add(pending.id)
            self._context.spawn(self._context.journal.write(write, pending.id))
        self._commands.append(replace(pending, id=None))
        self._arrived.set()

    run.Run.ask = ask


@ablation("an owner that is working keeps its transaction, whatever is asked of others")
def owner_keeps_it() -> None:
    engine_commands.Commands._is_owned = lambda self, transaction: False


@ablation("who was overtaken finds out before it calls again")
def repeats_are_saved() -> None:
    advance = run.advance

    def hasty(before: Any, *rest: Any) -> Step:
        step = advance(before, *rest)
        only_repeats = step.calls and not steps._others_must_know(before, step.transaction)
        return replace(step, must_save=False) if only_repeats and not step.rests else step

    run.advance = hasty


# --- the SDK -----------------------------------------------------------------------------------------------------


def _decide_otherwise(otherwise: Callable[[Any, Event], Any]) -> None:
    decide = execution.decide

    def changed(rules: Any, happening: Happening, row: Any) -> Any:
        step = otherwise(execution._seen(rules, happening, row), happening.event)
        return decide(rules, happening, row) if step is None else step

    execution.decide = changed


@ablation("the fence row: what is done is not done again")
def fence_row() -> None:
    runs = {
        (State.HELD, Event.TRY): Run((Operation.TRY,), State.TRYING, State.HELD),
        (State.CONFIRMED, Event.CONFIRM): Run((Operation.CONFIRM,), State.CONFIRMING, State.CONFIRMED),
        (State.CANCELLED, Event.CANCEL): Run((Operation.CANCEL,), State.CANCELLING, State.CANCELLED),
    }
    _decide_otherwise(lambda seen, event: runs.get((seen.state, event)))


@ablation("a branch has one row: the fence's unique key")
def unique_key() -> None:
    for name in ("orders", "stock", GATEWAY):
        databases.raw(databases.participant_engine(name)).executescript(
            "CREATE TABLE apart AS SELECT * FROM holdfast_branches;"
            "DROP TABLE holdfast_branches; ALTER TABLE apart RENAME TO holdfast_branches;"
        )


@ablation("a Try that comes after its Cancel is refused")
def late_try_is_refused() -> None:
    late = Run((Operation.TRY,), State.TRYING, State.HELD)
    _decide_otherwise(lambda seen, event: late if (seen.state, event) == (State.CANCELLED, Event.TRY) else None)


@ablation("a Cancel of what was never tried leaves a tombstone")
def tombstone() -> None:
    carry_out = mounted.carry_out

    def forgetful(rules: Any, happening: Happening, session: Any, invoke: Any) -> Outcome:
        outcome = carry_out(rules, happening, session, invoke)
        row = outcome.row
        if happening.event is Event.CANCEL and row is not None and row.payload is None and row.version == 1:
            rows.remove(session, rules.table, row)
            session.commit()
        return outcome

    mounted.carry_out = forgetful


@ablation("a Cancel of what was never tried succeeds, with no handler run")
def empty_cancel() -> None:
    refused = Refuse(Refusal.NOTHING_HELD)
    _decide_otherwise(lambda seen, event: refused if (seen.state, event) == (State.NOTHING, Event.CANCEL) else None)


@ablation("a hold whose time is up is released only when the coordinator says so")
def inquiry() -> None:
    async def find_out(self: Any, row: Any) -> bool:
        await self.perform(Happening(key=row.key, event=Event.TOLD_CANCEL, version=row.version))
        return True

    Reaper._find_out = find_out


@ablation("the decision of another coordinator counts for nothing")
def whose_decision() -> None:
    read = inquiries._read

    def from_anybody(status: int, document: Any, coordinator_id: str | None) -> Any:
        return read(status, document, None)

    inquiries._read = from_anybody


@ablation("the inquiry is about the branch that asks")
def inquiry_names_the_branch() -> None:
    find_decision = queries.find_decision

    def of_the_transaction(connection: Connection, transaction_id: str, branch: str | None) -> Any:
        return find_decision(connection, transaction_id)

    queries.find_decision = of_the_transaction


@ablation("a hold whose time is up is looked after at all")
def reaper() -> None:
    async def rest(self: Any, interval_s: float) -> None:
        return

    Reaper.run_for_ever = rest


@ablation("the reaper acts on a row as it found it")
def outdated_findings() -> None:
    execution._is_outdated = lambda happening, row, step: False


@ablation("effects and the row are one local transaction")
def one_local_transaction() -> None:
    call = execution._call_handlers

    def apart(rules: Any, happening: Any, session: Any, invoke: Any, **rest: Any) -> Any:
        result = call(rules, happening, session, invoke, **rest)
        session.commit()
        return result

    execution._call_handlers = apart


class _Changed:
    """A module in which some names mean something else."""

    def __init__(self, module: Any, **changed: Any) -> None:
        self._module = module
        self.__dict__.update(changed)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


# --- the run -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Caught:
    """What became of an ablation; `seed` None: nothing was noticed."""

    name: str
    seed: int | None
    rules: tuple[str, ...] = ()


def catch(name: str, seeds_max: int) -> Caught:
    """Take the safeguard out of this process, for good, and run seeds until one fails."""
    warm_up()
    ABLATIONS[name][1]()
    for seed in range(1, seeds_max + 1):
        violations = world.run_seed(seed).violations
        gc.collect()
        if violations:
            found = tuple(sorted({violation.rule for violation in violations}))
            return Caught(name=name, seed=seed, rules=found)
    return Caught(name=name, seed=None)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation.ablations", description=__doc__)
    parser.add_argument("--seeds", type=int, default=SEEDS_MAX)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("names", nargs="*", default=[], help="which (default: all)")
    arguments = parser.parse_args()
    missed = 0
    print("| safeguard taken out | caught by seed | by |")
    print("|---|---|---|")
    jobs = [(name, arguments.seeds) for name in arguments.names or ABLATIONS]
    with multiprocessing.get_context("forkserver").Pool(arguments.workers, maxtasksperchild=1) as pool:
        for caught in pool.imap(_catch, jobs, chunksize=1):
            missed += caught.seed is None
            when = f"not in {arguments.seeds}" if caught.seed is None else caught.seed
            print(f"| {ABLATIONS[caught.name][0]} | {when} | {', '.join(caught.rules[:4])} |", flush=True)
    return 1 if missed else 0


def _catch(job: tuple[str, int]) -> Caught:
    return catch(*job)


if __name__ == "__main__":
    sys.exit(main())
