"""`SagaStep`, `Pivot`, `Retryable` and `Check`: what a service creates, decorates and mounts."""

import ssl
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal, TypeVar

import httpx
from sqlalchemy import MetaData

from holdfast.fence import check, compensable, pivot, retryable
from holdfast.fence.database import AnyDatabase
from holdfast.fence.rows import Row
from holdfast.fence.schedule import Keeping
from holdfast.fence.steps import Event, Fence
from holdfast.fence.values import step_of
from holdfast.hold import Step
from holdfast.participant.inquiry import Answered
from holdfast.participant.mounted import Mounted
from holdfast.signing import TOLERANCE_DEFAULT_S
from holdfast.wire import Operation

F = TypeVar("F", bound=Callable[..., Any])


class StepParticipant(Mounted):
    """What the kinds with an action have in common. docs/reference/sdk.md, "Steps", describes every argument.

    Raises TypeError if `database` is not a database, and ValueError if it isn't supported.
    """

    _fence: ClassVar[Fence]

    def __init__(
        self,
        name: str,
        database: AnyDatabase,
        *,
        coordinator_url: str,
        metadata: MetaData | None = None,
        two_step: bool = False,
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
        super().__init__(
            name,
            database,
            fence=self._fence,
            schedule=Keeping(retention_s=retention_s),
            make_value=step_of,
            value_type=Step,
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

    def on_action(self, handler: F) -> F:
        """Decorate the function that does what the step is for. Raises TypeError if it doesn't suit the database."""
        self._rules.handlers.add(Operation.ACTION, handler)
        return handler

    def _finding(self, row: Row, answered: Answered) -> Event | None:
        """Whatever was decided, nothing follows from it here but that the row may go once nobody will call again."""
        return Event.TOLD_FINISHED if answered.is_finished else None


class SagaStep(StepParticipant):
    """A step that takes effect at once, and is compensated if the transaction is cancelled.

    There is no time limit: nothing but the coordinator's call compensates it. Without `on_compensation` there must be
    nothing to undo; an action that comes after its compensation is refused all the same.
    """

    _fence = compensable.FENCE

    def on_compensation(self, handler: F) -> F:
        """Decorate the function that undoes what the action did. Optional."""
        self._rules.handlers.add(Operation.COMPENSATION, handler)
        return handler


class Pivot(StepParticipant):
    """The point of no return: its success decides that the transaction is confirmed, its refusal that it is cancelled.

    A refusal (`Refused`, or a payload that doesn't validate) is recorded before it is answered, and repeated from then
    on. `cancel` is served without a handler: what never came is recorded as never to happen, what is done is answered
    with 409 `already-done` and the result.

    With `two_step` an interrupted action may have had an effect outside. Then a cancel runs `on_cancel`, which makes
    sure that the effect doesn't happen, or raises Refused if it has happened. Without `on_cancel`, or after its
    Refused, the action handler runs again, with the same idempotency key, until it says how it ended; that is the
    answer. So a Refused of the action must be the gateway's word for that key, or come before anything was sent.
    """

    _fence = pivot.FENCE

    def on_cancel(self, handler: F) -> F:
        """Decorate the function that voids an interrupted action outside the database. Only with `two_step`. Optional.

        When it returns, the action has no effect and never will. Refused means that the effect can't be undone.
        """
        if not self._rules.two_step:
            raise TypeError("on_cancel is for two_step=True: otherwise no action is ever left half done")
        self._rules.handlers.add(Operation.CANCEL, handler)
        self._rules = replace(self._rules, fence=pivot.FENCE_THAT_VOIDS)
        return handler


class Retryable(StepParticipant):
    """A step after the decision to confirm, repeated until it is done. Its result is kept, and answers repetitions.

    A refusal (`Refused`) is not recorded: the coordinator lists the branch as hung, and tries again.
    """

    _fence = retryable.FENCE


class Check(StepParticipant):
    """A question that must be true before anything is decided. It has no effects, and is asked again in every call.

    What the handler writes is rolled back.
    """

    _fence = check.FENCE
