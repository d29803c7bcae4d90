"""`Participant`: what a service of TCC creates, decorates and mounts. What all kinds have is in mounted.py."""

import logging
import ssl
import time
from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeVar

import httpx
from sqlalchemy import MetaData

from holdfast.fence import table
from holdfast.fence.database import AnyDatabase
from holdfast.fence.rows import Row
from holdfast.fence.schedule import Holding
from holdfast.fence.steps import Event
from holdfast.fence.values import hold_of
from holdfast.hold import Hold
from holdfast.participant.inquiry import Answered, Verdict
from holdfast.participant.mounted import Mounted, check_limits
from holdfast.signing import TOLERANCE_DEFAULT_S
from holdfast.wire import Operation

log = logging.getLogger("holdfast")

F = TypeVar("F", bound=Callable[..., Any])


class Participant(Mounted):
    """A service's part in TCC transactions. docs/reference/sdk.md, "Participant", describes every argument.

    Raises TypeError if `database` is not a database, and ValueError if it isn't supported or if limits contradict each
    other.
    """

    def __init__(
        self,
        name: str,
        database: AnyDatabase,
        *,
        coordinator_url: str,
        metadata: MetaData | None = None,
        two_step: bool = False,
        reacquire: bool = False,
        hold_ttl_max_s: float | None = None,
        hold_max_s: float | None = None,
        handler_timeout_s: float | None = None,
        retention_s: float = 30 * 86_400.0,
        reap_interval_s: float = 5.0,
        ask_timeout_s: float = 5.0,
        secrets: Sequence[str] = (),
        signatures: Literal["accept", "require"] | None = None,
        signature_tolerance_s: float = TOLERANCE_DEFAULT_S,
        clock: Callable[[], float] = time.time,
        tls: ssl.SSLContext | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
        api_key: str | None = None,
    ) -> None:
        _check_holds(hold_ttl_max_s=hold_ttl_max_s, hold_max_s=hold_max_s)
        super().__init__(
            name,
            database,
            fence=table.fence(may_reacquire=reacquire),
            schedule=Holding(hold_ttl_max_s=hold_ttl_max_s, hold_max_s=hold_max_s),
            make_value=hold_of,
            value_type=Hold,
            coordinator_url=coordinator_url,
            metadata=metadata,
            two_step=two_step,
            handler_timeout_s=handler_timeout_s,
            retention_s=retention_s,
            reap_interval_s=reap_interval_s,
            ask_timeout_s=ask_timeout_s,
            secrets=secrets,
            signatures=signatures,
            signature_tolerance_s=signature_tolerance_s,
            clock=clock,
            tls=tls,
            transport=transport,
            api_key=api_key,
        )

    def on_try(self, handler: F) -> F:
        """Decorate the function that reserves. Raises TypeError if it doesn't suit the database."""
        self._rules.handlers.add(Operation.TRY, handler)
        return handler

    def on_confirm(self, handler: F) -> F:
        """Decorate the function that makes a hold final. Optional."""
        self._rules.handlers.add(Operation.CONFIRM, handler)
        return handler

    def on_cancel(self, handler: F) -> F:
        """Decorate the function that releases a hold. Optional."""
        self._rules.handlers.add(Operation.CANCEL, handler)
        return handler

    def _finding(self, row: Row, answered: Answered) -> Event | None:
        """A hold whose time is up is kept or released as was decided, and past its limit without a decision."""
        event = self._event_of(row, answered)
        if event is not None:
            log.log(
                logging.WARNING if event is Event.ABANDONED else logging.INFO,
                "event=hold_lapsed transaction_id=%s branch=%s verdict=%s action=%s",
                row.transaction_id,
                row.branch,
                answered.verdict.value,
                event.value,
            )
        return event

    def _event_of(self, row: Row, answered: Answered) -> Event | None:
        match answered.verdict:
            case Verdict.CONFIRM:
                return Event.TOLD_CONFIRM
            case Verdict.CANCEL:
                return Event.TOLD_CANCEL
            case Verdict.UNDECIDED | Verdict.UNREACHABLE:
                ends_at = self._rules.schedule.ends_at(row)
                return Event.ABANDONED if ends_at is not None and self._rules.clock() >= ends_at else None


def _check_holds(*, hold_ttl_max_s: float | None, hold_max_s: float | None) -> None:
    check_limits(hold_ttl_max_s=hold_ttl_max_s, hold_max_s=hold_max_s)
    if hold_ttl_max_s is not None and hold_max_s is not None and hold_max_s < hold_ttl_max_s:
        raise ValueError(
            f"hold_max_s ({hold_max_s}), after which a hold is released without asking, "
            f"must not be less than hold_ttl_max_s ({hold_ttl_max_s})"
        )
