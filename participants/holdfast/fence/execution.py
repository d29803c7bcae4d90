"""Executes what the fence decides: rows and handlers in one local transaction or, in the two-step form, around it.

One plain function of a Session serves both the coordinator's calls and the reaper's findings. Responsible for the order
of writes, commits and handlers. Must not choose transitions (table.py does), speak HTTP, or wait for anything but the
database and the handler.
"""

import asyncio
import hashlib
import json
import logging
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any, Final, assert_never

from sqlalchemy import Table
from sqlalchemy.orm import Session

from holdfast.fence import rows
from holdfast.fence.database import hide_values
from holdfast.fence.guard import Undone, require_transaction, transaction_kept
from holdfast.fence.handlers import HandlerBroke, Handlers, InvalidPayload, Invoke
from holdfast.fence.rows import Key, Row, Superseded
from holdfast.fence.schedule import Schedule, is_sweep, must_sweep
from holdfast.fence.steps import (
    FINISHED,
    RUNNING,
    Ask,
    Consult,
    Event,
    Fence,
    Forget,
    Mark,
    Recall,
    Refusal,
    Refuse,
    Repeat,
    Rest,
    Run,
    Seen,
    Settle,
    State,
    Step,
    Wait,
)
from holdfast.fence.values import Known, MakeValue
from holdfast.hold import Refused
from holdfast.json_text import loads, same, text_of
from holdfast.wire import Operation

log = logging.getLogger("holdfast")

ROUNDS_MAX: Final = 5
"""How often a call starts over because the row changed concurrently, before it answers "busy"."""
_REFUSED: Final = "refused"
_INVALID: Final = "invalid-payload"
BACKOFF_BASE_S: Final = 1.0
BACKOFF_CAP_S: Final = 300.0


class CrashPoint(StrEnum):
    """Points at which a test can simulate the death of the process."""

    MARKED = "marked"
    HANDLED = "handled"
    COMMITTED = "committed"


class Declined(Exception):
    """The fence refuses the call. `result`: what the row keeps as the branch's result, as JSON text.

    `is_final`: whether the refusal may be taken for a decision.
    """

    def __init__(self, refusal: Refusal, detail: str = "", *, result: str | None = None, is_final: bool = True) -> None:
        super().__init__(refusal)
        self.refusal = refusal
        self.detail = detail
        self.result = result
        self.is_final = is_final


class Busy(Exception):
    """A handler of this branch may still be running; try again after `after_s` seconds."""

    def __init__(self, after_s: float) -> None:
        super().__init__(after_s)
        self.after_s = after_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Happening:
    """An event on a branch. `payload` is JSON text, or None if the message had none.

    `version` is the row's version when the reaper found it; calls have none. `was_held`: the message says that the
    coordinator saw the first call succeed. `coordinator_id`: whose call it is, if it says so. `results`: a JSON object,
    or None.
    """

    key: Key
    event: Event
    attempt: int = 0
    payload: str | None = None
    hold_ttl_s: float | None = None
    version: int | None = None
    was_held: bool = False
    coordinator_id: str | None = None
    results: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """The row after an event. `must_ask`: ask the coordinator for its decision before anything else."""

    row: Row | None
    must_ask: bool = False
    is_first: bool = False  # the first Try, with which the hold's time starts


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """A participant's configuration. Times are seconds on its own clock."""

    table: Table
    fence: Fence
    schedule: Schedule
    handlers: Handlers
    make_value: MakeValue
    two_step: bool
    handler_timeout_s: float
    lease_s: float
    jitter: Callable[[], float]  # 0 to 1
    clock: Callable[[], float]
    probe: Callable[[CrashPoint], None] = field(default=lambda point: None)


def payload_hash(payload: str) -> str:
    """A hash of a JSON value: equal for 1 and 1.0, for any order of members, and for numbers that are one double.

    Replicas of all versions write this form. Where digits count, `_differs` compares the texts.
    """
    canonical = json.dumps(_canonical(loads(payload)), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def carry_out(rules: Rules, happening: Happening, session: Session, invoke: Invoke) -> Outcome:
    """Process an event on a branch and commit the result.

    Raises Declined, Busy, Refused (from the handler, or recorded), InvalidPayload, or whatever the handler or the
    database raises. Then nothing is kept, except the marks of the two-step form and refusals that have to be recorded.
    """
    for _ in range(ROUNDS_MAX):
        try:
            outcome = _once(rules, happening, session, invoke)
        except Superseded:
            session.rollback()
            continue
        if outcome is not None:
            return outcome
    raise Busy(1.0)


def _once(rules: Rules, happening: Happening, session: Session, invoke: Invoke) -> Outcome | None:
    """Take one step; None if the row has been moved on and has to be looked at again."""
    require_transaction(session.connection())
    first_step = decide(rules, happening, None)
    if isinstance(first_step, Consult):
        return _consult(rules, happening, session, invoke, first_step)
    row, is_new = _seize(rules, happening, session, first_step)
    step = decide(rules, happening, None if is_new else row)
    if _is_outdated(happening, row, step):
        session.rollback()
        return Outcome(row=row)
    match step:
        case Run():
            assert row is not None
            after = _run(rules, happening, session, invoke, row=row, step=step, is_new=is_new)
            return None if after is None else Outcome(row=after, is_first=is_new)
        case Settle(run):
            assert row is not None
            _run(rules, happening, session, invoke, row=row, step=run, is_new=is_new)
            return None
        case Consult():
            raise AssertionError("a fence consults whatever the row says")
        case _:
            return _conclude(rules, session, row, step)


def _conclude(
    rules: Rules, session: Session, row: Row | None, step: Mark | Repeat | Recall | Refuse | Wait | Ask | Forget | Rest
) -> Outcome:
    """End the database transaction without a handler."""
    if isinstance(step, Mark):  # the row was inserted in this state
        session.commit()
        if step.refusal is not None:
            raise Declined(step.refusal)
        return Outcome(row=row)
    if isinstance(step, Forget):
        assert row is not None
        rows.remove(session, rules.table, row)
        session.commit()
        return Outcome(row=row)
    session.rollback()
    match step:
        case Repeat():
            return Outcome(row=row)
        case Recall():
            assert row is not None
            raise _recorded(row)
        case Refuse(refusal, is_final):
            raise Declined(refusal, result=None if row is None else row.result, is_final=is_final)
        case Wait(after_s):
            raise Busy(after_s)
        case Ask():
            return Outcome(row=row, must_ask=True)
        case Rest():
            if row is not None and row.state not in RUNNING:
                rows.look_again(session, rules.table, replace(row, locked=False), at=None, checks=0)
                session.commit()
            return Outcome(row=row)
    assert_never(step)


def decide(rules: Rules, happening: Happening, row: Row | None) -> Step:
    """What the participant's fence says about the event, given the row."""
    return rules.fence.decide(_seen(rules, happening, row), happening.event)


def _is_outdated(happening: Happening, row: Row | None, step: Step) -> bool:
    """Whether the row that the reaper found has been moved on by another run since.

    The reaper must not release it again, and not remove it. If it has to be swept, that is scheduled already.
    """
    moved = happening.version is not None and row is not None and row.version != happening.version
    return moved and (isinstance(step, Rest | Forget) or (isinstance(step, Run) and is_sweep(step)))


def _consult(rules: Rules, happening: Happening, session: Session, invoke: Invoke, step: Consult) -> Outcome:
    """Run a handler whose changes, if there are any, are rolled back. The row is none that the database knows."""
    run = Run((step.operation,), State.NOTHING, State.NOTHING)
    row = _new_row(rules, happening, run)
    try:
        result = _call_handlers(rules, happening, session, invoke, row=row, step=run)
    finally:
        _roll_back(session)
    return Outcome(row=replace(row, result=result))


def _seize(rules: Rules, happening: Happening, session: Session, step: Step) -> tuple[Row | None, bool]:
    """The row, locked until the end of the database transaction, and whether this call has just inserted it.

    A call that may create the row inserts first, so that concurrent calls are serialised by the primary key; `step` is
    what must be done if there is no row.
    """
    if isinstance(step, Run | Mark):
        row = _new_row(rules, happening, step)
        if rows.insert_if_absent(session, rules.table, row):
            return row, True
        found = rows.lock(session, rules.table, happening.key)
        if found is None:  # removed since the insert found it
            raise Superseded
        return found, False
    return rows.lock(session, rules.table, happening.key), False


def _new_row(rules: Rules, happening: Happening, step: Run | Mark) -> Row:
    now = rules.clock()
    runs = isinstance(step, Run)
    times = rules.schedule.of_new(now=now, hold_ttl_s=happening.hold_ttl_s, runs=runs)
    expires_at = times["expires_at"]
    assert expires_at is not None
    return Row(
        participant=happening.key.participant,
        transaction_id=happening.key.transaction_id,
        branch=happening.key.branch,
        state=step.via if isinstance(step, Run) else step.state,
        payload=happening.payload if runs else None,
        payload_hash=None if happening.payload is None else payload_hash(happening.payload),
        validated=rules.handlers.validated(happening.payload) if runs and happening.payload is not None else None,
        busy_until=now + rules.lease_s if runs and rules.two_step else None,
        expires_at=expires_at,
        created_at=now,
        finished_at=times["finished_at"],
        check_at=times["check_at"],
        coordinator_id=happening.coordinator_id,
    )


def _differs(happening: Happening, row: Row) -> bool:
    """Whether the payload isn't the one that the row was made with.

    Every digit counts for a first call. A later call that was refused would hang, and a version that rounded numbers
    may have written the row.
    """
    if happening.payload is None or row.payload_hash is None or happening.payload == row.payload:
        return False
    if payload_hash(happening.payload) != row.payload_hash:
        return True
    return (
        happening.event in (Event.TRY, Event.ACTION)
        and row.payload is not None
        and not same(happening.payload, row.payload)
    )


def _seen(rules: Rules, happening: Happening, row: Row | None) -> Seen:
    if row is None:
        return Seen(state=State.NOTHING, was_held=happening.was_held)
    busy_s = 0.0 if row.busy_until is None else max(0.0, row.busy_until - rules.clock())
    return Seen(
        state=row.state,
        payload_differs=_differs(happening, row),
        busy_s=busy_s,
        was_held=happening.was_held,
        is_doubtful=row.doubtful,
    )


def _run(
    rules: Rules, happening: Happening, session: Session, invoke: Invoke, *, row: Row, step: Run, is_new: bool
) -> Row | None:
    """Run the handlers and write the row in one transaction; two-step: mark, run the handlers, write in another one.

    Returns the row, or None if a refusal was recorded instead.
    """
    if rules.two_step:
        try:
            _parse(rules, step, row)  # fails before there is a mark to remove
        except InvalidPayload as error:
            _roll_back(session)
            if (refusal := _to_record(step, error, is_new=is_new)) is None:
                raise
            _record(rules, session, row=row, step=step, refusal=refusal, is_stored=False)
            return None
        if not is_new:
            row = rows.write(session, rules.table, row, **_mark(rules, row, step))
        session.commit()
        rules.probe(CrashPoint.MARKED)
    try:
        result = _call_handlers(rules, happening, session, invoke, row=row, step=step)
        rules.probe(CrashPoint.HANDLED)
        after = rows.write(session, rules.table, row, **_end(rules, row, step, result))
        session.commit()
    except Superseded:
        session.rollback()
        if not rules.two_step:  # no other run can have changed a locked row
            raise Undone from None
        _after_losing(rules, happening, session, invoke, step)
        raise
    except (Exception, asyncio.CancelledError) as error:
        _roll_back(session)
        refusal = _to_record(step, error, is_new=is_new)
        try:
            if refusal is not None:
                is_stored = rules.two_step or not is_new
                _record(rules, session, row=row, step=step, refusal=refusal, is_stored=is_stored)
                return None
            if rules.two_step:
                _give_up_lease(rules, session, row=row, step=step, error=error, is_first=is_new)
        except Superseded:
            session.rollback()
            if rules.two_step:
                _after_losing(rules, happening, session, invoke, step)
            if refusal is not None:
                raise
        raise
    rules.probe(CrashPoint.COMMITTED)
    return after


def _to_record(step: Run, error: BaseException, *, is_new: bool) -> Refused | InvalidPayload | None:
    """The refusal that has to be durable before it is answered, or None.

    A payload that was valid when the row was made, and no longer is because the annotation has changed, decides
    nothing: that raises HandlerBroke.
    """
    if step.refused is None or not isinstance(error, Refused | InvalidPayload):
        return None
    if isinstance(error, InvalidPayload) and not is_new:
        raise HandlerBroke(error) from error
    return error


def _record(
    rules: Rules, session: Session, *, row: Row, step: Run, refusal: Refused | InvalidPayload, is_stored: bool
) -> None:
    """Make a refusal durable, with its answer, after what the handler wrote was rolled back. Raises Superseded.

    The caller looks at the row again, and finds the refusal there, or what another call made of it meanwhile.
    """
    assert step.refused is not None
    now = rules.clock()
    changes: dict[str, Any] = {"state": step.refused, "busy_until": None}
    if step.refused is State.REFUSED:
        problem = _INVALID if isinstance(refusal, InvalidPayload) else _REFUSED
        changes["result"] = text_of({"problem": problem, "detail": str(refusal)})
        changes |= rules.schedule.of_finished(now=now, sweep_in_s=rules.lease_s if row.doubtful else None)
    if is_stored:
        rows.write(session, rules.table, replace(row, locked=False), **changes)
    elif not rows.insert_if_absent(session, rules.table, replace(row, **changes)):
        raise Superseded
    session.commit()
    rules.probe(CrashPoint.COMMITTED)


def _recorded(row: Row) -> Refused | InvalidPayload:
    """The refusal that `_record` has kept."""
    kept = loads(row.result or "{}")
    wanted = InvalidPayload if kept.get("problem") == _INVALID else Refused
    return wanted(kept.get("detail", "refused"))


def _mark(rules: Rules, row: Row, step: Run) -> dict[str, Any]:
    """The row's values while a two-step handler runs."""
    now = rules.clock()
    lease_ran_out = row.state in RUNNING and row.busy_until is not None
    acquires = step.via is State.REACQUIRING and row.state is State.EXPIRED
    return {
        "state": step.via,
        "busy_until": now + rules.lease_s,
        "doubtful": row.doubtful or lease_ran_out,
        "acquisition": row.acquisition + acquires,
        "check_at": rules.schedule.look_while_running(row, step.via, now=now, lease_s=rules.lease_s),
    }


def _end(rules: Rules, row: Row, step: Run, result: str | None) -> dict[str, Any]:
    """The row's values after the handlers have run."""
    now = rules.clock()
    changes: dict[str, Any] = {"state": step.then, "busy_until": None, "checks": 0}
    if result is not None:
        changes["result"] = result
    if rules.fence.first in step.operations:
        changes["held_at"] = now
        if step.via is State.REACQUIRING and not rules.two_step:
            changes["acquisition"] = row.acquisition + 1
    if step.then in FINISHED:
        changes["doubtful"] = False if is_sweep(step) else row.doubtful
        sweep_in_s = rules.lease_s if must_sweep(row, step) else None
        changes |= rules.schedule.of_finished(now=now, sweep_in_s=sweep_in_s)
    return changes


def _call_handlers(
    rules: Rules, happening: Happening, session: Session, invoke: Invoke, *, row: Row, step: Run
) -> str | None:
    """Run the step's handlers in order; returns the first call's result as JSON text, None if it isn't among them."""
    result: str | None = None
    reacquires = step.via is State.REACQUIRING
    acquisition = row.acquisition + (reacquires and not rules.two_step)
    for operation, payload in _parse(rules, step, row):
        is_first = operation is rules.fence.first
        is_committed = not is_first and (reacquires or (row.held_at is not None and not is_sweep(step)))
        stored = result if result is not None else row.result
        known = Known(
            row=row,
            payload=payload,
            result=None if is_first or not is_committed or stored is None else loads(stored),
            results=happening.results,
            attempt=happening.attempt,
            idempotency_key=_idempotency_key(row, acquisition),
            is_committed=is_committed,
        )
        value = rules.make_value(known)
        try:
            with transaction_kept(session, open_already=not rules.two_step):
                returned = rules.handlers.call(operation, value, session, invoke, timeout_s=rules.handler_timeout_s)
        except Refused as refused:
            if reacquires and is_first:
                raise Declined(Refusal.HOLD_EXPIRED, refused.detail) from refused
            raise
        if is_first:
            result = text_of(returned)
    return result


def _parse(rules: Rules, step: Run, row: Row) -> list[tuple[Operation, Any]]:
    payload = row.payload if row.payload is not None else "null"
    return [(operation, rules.handlers.parse(operation, payload, row.validated)) for operation in step.operations]


def _idempotency_key(row: Row, acquisition: int) -> str:
    key = f"{row.transaction_id}:{row.branch}"
    return key if acquisition == 1 else f"{key}:{acquisition}"


def _give_up_lease(
    rules: Rules, session: Session, *, row: Row, step: Run, error: BaseException, is_first: bool
) -> None:
    """Release the lease of a two-step handler that failed, so that nobody waits for it to end.

    Only a first call that refuses in its very first run has certainly had no external effect; its row is removed.
    Raises Superseded if the lease was already lost.
    """
    now = rules.clock()
    try:
        if is_first and isinstance(error, Refused):
            rows.remove(session, rules.table, row)
        elif isinstance(error, Declined):  # re-acquiring was refused: expired for good; sweep its external effects
            rows.write(session, rules.table, row, state=State.EXPIRED, busy_until=None, check_at=now)
        else:
            changes: dict[str, Any] = {"busy_until": None}
            if rules.fence.first in step.operations and not isinstance(error, Refused):
                changes["doubtful"] = True  # what it sent may still arrive, even after a cancel
            if rules.schedule.repeats(step):
                changes["checks"] = row.checks + 1
                changes["check_at"] = now + backoff_s(rules, row.checks)
            rows.write(session, rules.table, row, **changes)
        session.commit()
    except Superseded:
        raise
    except Exception as trouble:  # the handler's failure matters more; the lease ends by itself
        _roll_back(session)
        hide_values(trouble)
        log.warning(
            "event=lease_not_released transaction_id=%s branch=%s error=%s",
            row.transaction_id,
            row.branch,
            type(trouble).__name__,
        )


def _after_losing(rules: Rules, happening: Happening, session: Session, invoke: Invoke, step: Run) -> None:
    """Undo the external effects of a run that lost its lease and was overtaken by another.

    Marks the row durably first, so that the reaper takes over after a crash. If the release is still in progress, its
    end schedules the sweep, because the row is doubtful.
    """
    if rules.fence.first not in step.operations:
        return
    row = rows.lock(session, rules.table, happening.key)
    if row is None or row.state not in (State.CANCELLED, State.EXPIRED, State.REFUSED):
        session.rollback()
        return
    now = rules.clock()
    rows.write(session, rules.table, row, doubtful=True, busy_until=None, check_at=now)
    session.commit()
    try:
        _once(rules, Happening(key=happening.key, event=Event.DUE), session, invoke)
    except Exception as error:  # the reaper will retry
        _roll_back(session)
        hide_values(error)
        log.warning(
            "event=undo_postponed transaction_id=%s branch=%s error=%s",
            row.transaction_id,
            row.branch,
            type(error).__name__,
        )


def _roll_back(session: Session) -> None:
    """Roll back without replacing the error that is being handled, above all the cancellation of this task.

    If it fails, the connection is lost. The pool drops it, and the database rolls back.
    """
    with suppress(Exception):
        session.rollback()


def backoff_s(rules: Rules, checks: int) -> float:
    """Exponential back-off with full jitter, in seconds, between 0.1 and a cap."""
    return max(0.1, rules.jitter() * min(BACKOFF_CAP_S, BACKOFF_BASE_S * 2.0 ** min(checks, 20)))


def _canonical(value: Any) -> Any:
    """The value with numbers normalised to doubles, because databases and languages on the way rewrite them."""
    match value:
        case dict():
            return {name: _canonical(member) for name, member in value.items()}
        case list():
            return [_canonical(item) for item in value]
        case float() if value.is_integer() and abs(value) < 2**53:
            return int(value)
        case int() if not isinstance(value, bool) and abs(value) >= 2**53:
            try:
                return float(value)
            except OverflowError:
                return str(value)
        case _:
            return value
