"""When a row's time is up, and when the background task looks at it: for holds, and for steps, which never expire.

Plain functions of a row and the time. Must not choose states (the tables do) or write.
"""

from dataclasses import dataclass
from typing import Final, Protocol

from holdfast.fence.rows import Row
from holdfast.fence.steps import FINISHED, Run, State
from holdfast.wire import Operation

TTL_DEFAULT_S: Final = 60.0
"""Time to live of a hold, in seconds, if neither the message nor the participant sets one."""

UNFINISHED_RECHECK_S: Final = 300.0
"""Pause between two questions whether a transaction is finished, in seconds; only the removal of a row waits for it."""


class Schedule(Protocol):
    """The times of a row. `lease_s` is how long a run keeps a row to itself, in seconds."""

    def of_new(self, *, now: float, hold_ttl_s: float | None, runs: bool) -> dict[str, float | None]:
        """The times of a new row; `runs`: a handler runs, so that the row isn't finished."""
        ...

    def look_while_running(self, row: Row, via: State, *, now: float, lease_s: float) -> float | None:
        """When to look at a row of which a two-step handler runs."""
        ...

    def of_finished(self, *, now: float, sweep_in_s: float | None) -> dict[str, float | None]:
        """The times of a finished row; `sweep_in_s`: when a lost run has to be undone, in seconds."""
        ...

    def repeats(self, step: Run) -> bool:
        """Whether the background task runs these handlers again if they fail."""
        ...

    def ends_at(self, row: Row) -> float | None:
        """When the row is moved on without the coordinator's permission, or None."""
        ...

    def announced_s(self, row: Row, *, is_first: bool, now: float) -> float | None:
        """The seconds to announce in `Tcc-Hold-Ttl`, or None."""
        ...

    @property
    def recheck_min_s(self) -> float:
        """How long to wait before the coordinator is asked again, at least, in seconds."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Holding:
    """A hold ends by itself, and is kept for a while after its end. The limits are in seconds."""

    hold_ttl_max_s: float | None = None
    hold_max_s: float | None = None

    def of_new(self, *, now: float, hold_ttl_s: float | None, runs: bool) -> dict[str, float | None]:
        limits = [s for s in (hold_ttl_s, self.hold_ttl_max_s, self.hold_max_s) if s is not None]
        expires_at = now + (min(limits) if limits else TTL_DEFAULT_S)
        return {
            "expires_at": expires_at,
            "check_at": expires_at if runs else None,
            "finished_at": None if runs else now,
        }

    def look_while_running(self, row: Row, via: State, *, now: float, lease_s: float) -> float | None:
        check_at = {State.TRYING: row.check_at, State.CONFIRMING: None, State.REACQUIRING: None}
        return check_at.get(via, now + lease_s)  # the background task finishes releases that crashed

    def of_finished(self, *, now: float, sweep_in_s: float | None) -> dict[str, float | None]:
        return {"finished_at": now, "check_at": None if sweep_in_s is None else now + sweep_in_s}

    def repeats(self, step: Run) -> bool:
        return step.operations == (Operation.CANCEL,)

    def ends_at(self, row: Row) -> float | None:
        return None if self.hold_max_s is None else row.created_at + self.hold_max_s

    def announced_s(self, row: Row, *, is_first: bool, now: float) -> float | None:
        """The remaining time of the hold, if this participant sets its own limit.

        A repeated Try gets less than the first one, because the coordinator measures from when it sent the repeat.
        """
        if self.hold_ttl_max_s is None and self.hold_max_s is None:
            return None
        return row.expires_at - (row.created_at if is_first else now)

    @property
    def recheck_min_s(self) -> float:
        return 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Keeping:
    """A step's row is kept for `retention_s` seconds, and longer: until its transaction is finished."""

    retention_s: float

    def of_new(self, *, now: float, hold_ttl_s: float | None, runs: bool) -> dict[str, float | None]:
        until = now + self.retention_s
        return {"expires_at": until, "check_at": until, "finished_at": None}

    def look_while_running(self, row: Row, via: State, *, now: float, lease_s: float) -> float | None:
        return row.check_at

    def of_finished(self, *, now: float, sweep_in_s: float | None) -> dict[str, float | None]:
        return {"check_at": now + (self.retention_s if sweep_in_s is None else sweep_in_s)}

    def repeats(self, step: Run) -> bool:
        return is_sweep(step)

    def ends_at(self, row: Row) -> float | None:
        return None

    def announced_s(self, row: Row, *, is_first: bool, now: float) -> float | None:
        return None

    @property
    def recheck_min_s(self) -> float:
        return UNFINISHED_RECHECK_S


def is_sweep(step: Run) -> bool:
    """Whether the step is a sweep, which undoes the external effects of a lost run; local ones are undone already."""
    return step.via is step.then


def must_sweep(row: Row, step: Run) -> bool:
    """Whether a lost run of this row may still act after `step` has ended it."""
    return row.doubtful and not is_sweep(step) and step.then in FINISHED and step.then is not State.CONFIRMED
