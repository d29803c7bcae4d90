"""What a handler gets, made from what is known of a branch: a `Hold` in TCC, a `Step` in every other kind."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any, Final

from holdfast.fence.rows import Row
from holdfast.hold import Hold, Step
from holdfast.json_text import JsonText, loads

NO_RESULTS: Final[Mapping[str, Any]] = MappingProxyType({})

Value = Hold[Any] | Step[Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """What is known when a handler runs. `result`: what the first call returned, None in the first call itself.

    `is_committed`: whether the first call's changes to this database are committed.
    """

    row: Row
    payload: Any
    result: Any
    results: str | None
    attempt: int
    idempotency_key: str
    is_committed: bool


MakeValue = Callable[[Known], Value]


def hold_of(known: Known) -> Hold[Any]:
    return Hold(
        transaction_id=known.row.transaction_id,
        branch=known.row.branch,
        payload=known.payload,
        result=known.result,
        results=_results(known.results),
        attempt=known.attempt,
        idempotency_key=known.idempotency_key,
        expires_at=datetime.fromtimestamp(known.row.expires_at, UTC),
        held=known.is_committed,
    )


def step_of(known: Known) -> Step[Any]:
    return Step(
        transaction_id=known.row.transaction_id,
        branch=known.row.branch,
        payload=known.payload,
        result=known.result,
        results=_results(known.results),
        attempt=known.attempt,
        idempotency_key=known.idempotency_key,
        done=known.is_committed,
    )


def _results(text: str | None) -> Mapping[str, Any]:
    return NO_RESULTS if text is None else MappingProxyType(loads(JsonText(text)))
