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
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, Final, assert_never

from sqlalchemy import Table
from sqlalchemy.orm import Session

from holdfast.fence import rows
from holdfast.fence.database import hide_values
from holdfast.fence.guard import Undone, require_transaction, transaction_kept
from holdfast.fence.handlers import Handlers, Invoke
from holdfast.fence.rows import Key, Row, Superseded
from holdfast.fence.table import (
    FINISHED,
    RUNNING,
    Ask,
    Event,
    Mark,
    Refusal,
    Refuse,
    Repeat,
    Rest,
    Run,
    Seen,
    State,
    Step,
    Wait,
    decide,
)
from holdfast.hold import Hold, Refused
from holdfast.json_text import loads, same, text_of
from holdfast.wire import Operation

log = logging.getLogger("holdfast")

ROUNDS_MAX: Final = 5
"""How often a call starts over because the row changed concurrently, before it answers "busy"."""
BACKOFF_BASE_S: Final = 1.0
BACKOFF_CAP_S: Final = 300.0
TTL_DEFAULT_S: Final = 60.0
"""Time to live of a hold, in seconds, if neither the message nor the participant sets one."""


class CrashPoint(StrEnum):
    """Points at which a test can simulate the death of the process."""

    MARKED = "marked"
    HANDLED = "handled"
    COMMITTED = "committed"


class Declined(Exception):
    """The fence refuses the call."""

    def __init__(self, refusal: Refusal, detail: str = "") -> None:
        super().__init__(refusal)
        self.refusal = refusal
        self.detail = detail


class Busy(Exception):
    """A handler of this branch may still be running; try again after `after_s` seconds."""

    def __init__(self, after_s: float) -> None:
        super().__init__(after_s)
        self.after_s = after_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Happening:
    """An event on a branch. `payload` is JSON text, or None if the message had none.

    `version` is the row's version when the reaper found it; calls have none. `was_held`: the message says that the
    coordinator saw the Try succeed. `coordinator_id`: whose call it is, if a Try says so.
    """

    key: Key
    event: Event
    attempt: int = 0
    payload: str | None = None
    hold_ttl_s: float | None = None
    version: int | None = None
    was_held: bool = False
    coordinator_id: str | None = None


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
    handlers: Handlers
    two_step: bool
    reacquire: bool
    hold_ttl_max_s: float | None
    hold_max_s: float | None
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

    Raises Declined, Busy, Refused (from the handler), InvalidPayload, or whatever the handler or the database raises.
    Then nothing is kept, except the marks of the two-step form.
    """
    for _ in range(ROUNDS_MAX):
        try:
            return _once(rules, happening, session, invoke)
        except Superseded:
            session.rollback()
    raise Busy(1.0)


def _once(rules: Rules, happening: Happening, session: Session, invoke: Invoke) -> Outcome:
    require_transaction(session.connection())
    row, is_new = _seize(rules, happening, session)
    seen = _seen(rules, happening, None if is_new else row)
    step = decide(seen, happening.event, may_reacquire=rules.reacquire)
    if _is_outdated(happening, row, step):
        session.rollback()
        return Outcome(row=row)
    match step:
        case Run():
            assert row is not None
            after = _run(rules, happening, session, invoke, row=row, step=step, is_new=is_new)
            return Outcome(row=after, is_first=is_new)
        case Mark():
            session.commit()
            return Outcome(row=row)
        case Repeat():
            session.rollback()
            return Outcome(row=row)
        case Refuse(refusal):
            session.rollback()
            raise Declined(refusal)
        case Wait(after_s):
            session.rollback()
            raise Busy(after_s)
        case Ask():
            session.rollback()
            return Outcome(row=row, must_ask=True)
        case Rest():
            session.rollback()
            if row is not None and row.state not in RUNNING:
                rows.look_again(session, rules.table, replace(row, locked=False), at=None, checks=0)
                session.commit()
            return Outcome(row=row)
    assert_never(step)


def _is_outdated(happening: Happening, row: Row | None, step: Step) -> bool:
    """Whether the row that the reaper found has been finished by another run since.

    The reaper must not release it again. If it has to be swept, that is scheduled already.
    """
    moved = happening.version is not None and row is not None and row.version != happening.version
    return moved and (isinstance(step, Rest) or (isinstance(step, Run) and _is_sweep(step)))


def _seize(rules: Rules, happening: Happening, session: Session) -> tuple[Row | None, bool]:
    """The row, locked until the end of the database transaction, and whether this call has just inserted it.

    A call that may create the row inserts first, so that concurrent calls are serialised by the primary key.
    """
    step = decide(_seen(rules, happening, None), happening.event)
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
    limits = [s for s in (happening.hold_ttl_s, rules.hold_ttl_max_s, rules.hold_max_s) if s is not None]
    expires_at = now + (min(limits) if limits else TTL_DEFAULT_S)
    runs = isinstance(step, Run)
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
        finished_at=None if runs else now,
        check_at=expires_at if runs else None,
        coordinator_id=happening.coordinator_id,
    )


def _differs(happening: Happening, row: Row) -> bool:
    """Whether the payload isn't the one that the row was made with.

    Every digit counts for a Try. A Confirm or Cancel that was refused would hang, and a version that rounded numbers
    may have written the row.
    """
    if happening.payload is None or row.payload_hash is None or happening.payload == row.payload:
        return False
    if payload_hash(happening.payload) != row.payload_hash:
        return True
    return happening.event is Event.TRY and row.payload is not None and not same(happening.payload, row.payload)


def _seen(rules: Rules, happening: Happening, row: Row | None) -> Seen:
    if row is None:
        return Seen(state=State.NOTHING, was_held=happening.was_held)
    busy_s = 0.0 if row.busy_until is None else max(0.0, row.busy_until - rules.clock())
    return Seen(state=row.state, payload_differs=_differs(happening, row), busy_s=busy_s)


def _run(
    rules: Rules, happening: Happening, session: Session, invoke: Invoke, *, row: Row, step: Run, is_new: bool
) -> Row:
    """Run the handlers and write the row in one transaction; two-step: mark, run the handlers, write in another one."""
    if rules.two_step:
        _parse(rules, step, row)  # fails before there is a mark to remove
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
        if rules.two_step:
            try:
                _give_up_lease(rules, session, row=row, step=step, error=error, is_first=is_new)
            except Superseded:
                session.rollback()
                _after_losing(rules, happening, session, invoke, step)
        raise
    rules.probe(CrashPoint.COMMITTED)
    return after


def _mark(rules: Rules, row: Row, step: Run) -> dict[str, Any]:
    """The row's values while a two-step handler runs."""
    now = rules.clock()
    lease_ran_out = row.state in RUNNING and row.busy_until is not None
    acquires = step.via is State.REACQUIRING and row.state is State.EXPIRED
    check_at = {State.TRYING: row.check_at, State.CONFIRMING: None, State.REACQUIRING: None}
    return {
        "state": step.via,
        "busy_until": now + rules.lease_s,
        "doubtful": row.doubtful or lease_ran_out,
        "acquisition": row.acquisition + acquires,
        "check_at": check_at.get(step.via, now + rules.lease_s),  # the reaper finishes releases that crashed
    }


def _end(rules: Rules, row: Row, step: Run, result: str | None) -> dict[str, Any]:
    """The row's values after the handlers have run."""
    now = rules.clock()
    changes: dict[str, Any] = {"state": step.then, "busy_until": None, "checks": 0}
    if result is not None:
        changes["result"] = result
    if Operation.TRY in step.operations:
        changes["held_at"] = now
        if step.via is State.REACQUIRING and not rules.two_step:
            changes["acquisition"] = row.acquisition + 1
    if step.then in FINISHED:
        is_sweep = _is_sweep(step)
        changes["finished_at"] = now
        changes["doubtful"] = False if is_sweep else row.doubtful
        lost_run_may_act = row.doubtful and not is_sweep and step.then is not State.CONFIRMED
        changes["check_at"] = now + rules.lease_s if lost_run_may_act else None
    return changes


def _call_handlers(
    rules: Rules, happening: Happening, session: Session, invoke: Invoke, *, row: Row, step: Run
) -> str | None:
    """Run the step's handlers in order; returns Try's result as JSON text, or None if Try isn't among them."""
    result: str | None = None
    reacquires = step.via is State.REACQUIRING
    acquisition = row.acquisition + (reacquires and not rules.two_step)
    for operation, payload in _parse(rules, step, row):
        is_try = operation is Operation.TRY
        held = not is_try and (reacquires or (row.held_at is not None and not _is_sweep(step)))
        stored = result if result is not None else row.result
        hold = Hold(
            transaction_id=row.transaction_id,
            branch=row.branch,
            payload=payload,
            result=None if is_try or not held or stored is None else loads(stored),
            attempt=happening.attempt,
            idempotency_key=_idempotency_key(row, acquisition),
            expires_at=datetime.fromtimestamp(row.expires_at, UTC),
            held=held,
        )
        try:
            with transaction_kept(session, open_already=not rules.two_step):
                returned = rules.handlers.call(operation, hold, session, invoke, timeout_s=rules.handler_timeout_s)
        except Refused as refused:
            if reacquires and is_try:
                raise Declined(Refusal.HOLD_EXPIRED, refused.detail) from refused
            raise
        if is_try:
            result = text_of(returned)
    return result


def _is_sweep(step: Run) -> bool:
    """Whether the step is a sweep, which undoes the external effects of a lost run; local ones are undone already."""
    return step.via is step.then


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

    Only a Try that refuses in its very first run has certainly had no external effect; its row is removed.
    Raises Superseded if the lease was already lost.
    """
    now = rules.clock()
    try:
        if step.via is State.TRYING and is_first and isinstance(error, Refused):
            rows.remove(session, rules.table, row)
        elif isinstance(error, Declined):  # re-acquiring was refused: expired for good; sweep its external effects
            rows.write(session, rules.table, row, state=State.EXPIRED, busy_until=None, check_at=now)
        else:
            changes: dict[str, Any] = {"busy_until": None}
            if Operation.TRY in step.operations and not isinstance(error, Refused):
                changes["doubtful"] = True  # what it sent may still arrive, even after a cancel
            if step.operations == (Operation.CANCEL,):
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
    if Operation.TRY not in step.operations:
        return
    row = rows.lock(session, rules.table, happening.key)
    if row is None or row.state not in (State.CANCELLED, State.EXPIRED):
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
