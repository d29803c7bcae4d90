"""The wire between coordinator and participant, defined once for both sides.

Headers, bodies and what a status code means (docs/reference/protocol.md, section 4). Standard library only: the
coordinator's core and the SDK's fence both read their words from here. No I/O and no clock.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from enum import StrEnum
from functools import lru_cache
from typing import Any, Final
from urllib.parse import quote

TRANSACTION_ID_HEADER: Final = "Tcc-Transaction-Id"
BRANCH_HEADER: Final = "Tcc-Branch"
OPERATION_HEADER: Final = "Tcc-Operation"
ATTEMPT_HEADER: Final = "Tcc-Attempt"
HOLD_TTL_HEADER: Final = "Tcc-Hold-Ttl"
IDEMPOTENCY_KEY_HEADER: Final = "Idempotency-Key"

DETAIL_CHARS_MAX: Final = 500
"""A refusal's detail and a call's error are cut here: they are for people and land in logs."""

JSON_DEPTH_MAX: Final = 100
"""Payloads and results nest at most so deep."""

_HEADER_SAFE: Final = " !#$%&'()*+,-./:;<=>?@[]^_`{|}~"

_COMPACT: Final = json.JSONEncoder(separators=(",", ":"), allow_nan=False)

_UNANSWERED_4XX: Final = frozenset({408, 425, 429})


class Operation(StrEnum):
    """What a participant is asked to do with its branch."""

    TRY = "try"
    CONFIRM = "confirm"
    CANCEL = "cancel"


class Answer(StrEnum):
    """What a call came to. There are three answers, never two: a timeout is no refusal."""

    SUCCEEDED = "succeeded"
    REFUSED = "refused"
    UNANSWERED = "unanswered"


class Decision(StrEnum):
    """Where a transaction is headed; once it is not `undecided` it never changes."""

    UNDECIDED = "undecided"
    CONFIRM = "confirm"
    CANCEL = "cancel"


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One request from the coordinator to a participant.

    `hold_ttl_s` (seconds) is set on try only; `result` is what the branch's Try answered and is set on
    confirm and cancel only. Source: docs/reference/protocol.md, section 4.
    """

    transaction_id: str
    branch: str
    operation: Operation
    attempt: int
    payload: Any
    hold_ttl_s: float | None = None
    result: Any = None

    def headers(self) -> dict[str, str]:
        """The headers that say in short what the body says, for gateways, logs and services without the SDK."""
        return {
            "Content-Type": "application/json",
            "Accept": "application/json, application/problem+json",
            TRANSACTION_ID_HEADER: self.transaction_id,
            BRANCH_HEADER: header_text(self.branch),
            OPERATION_HEADER: self.operation.value,
            ATTEMPT_HEADER: str(self.attempt),
            IDEMPOTENCY_KEY_HEADER: f'"{self.transaction_id}:{header_text(self.branch)}:{self.operation.value}"',
        }

    def body(self) -> bytes:
        """The JSON body, UTF-8."""
        return _COMPACT.encode(
            {
                "transaction_id": self.transaction_id,
                "branch": self.branch,
                "operation": self.operation.value,
                "attempt": self.attempt,
                "hold_ttl_s": self.hold_ttl_s,
                "payload": self.payload,
                "result": self.result,
            }
        ).encode()


@lru_cache(1024)
def header_text(text: str) -> str:
    """`text` as a header can carry it: what is not plain ASCII, and quotes and backslashes, percent-encoded (UTF-8)."""
    return quote(text, safe=_HEADER_SAFE, errors="replace")


def answer_of(status: int) -> Answer:
    """What an HTTP status means as an answer to a try, confirm or cancel.

    202 is "still working: ask again"; a redirect is not followed and therefore no answer.
    """
    if 200 <= status <= 299 and status != 202:
        return Answer.SUCCEEDED
    if 400 <= status <= 499 and status not in _UNANSWERED_4XX:
        return Answer.REFUSED
    return Answer.UNANSWERED


def retry_after_s(headers: Mapping[str, str]) -> float | None:
    """The seconds that `Retry-After` asks for (RFC 9110, 10.2.3), or None.

    A date is read against the response's own `Date`, so that two machines' clocks are never compared;
    without one, or when it can't be read, the header is passed over.
    """
    value = headers.get("retry-after")
    if value is None:
        return None
    seconds = _seconds(value)
    if seconds is not None:
        return seconds
    try:
        until = parsedate_to_datetime(value)
        sent = parsedate_to_datetime(headers.get("date", ""))
        return max(0.0, (until - sent).total_seconds())
    except (ValueError, TypeError, OverflowError):
        return None


def hold_ttl_s(headers: Mapping[str, str]) -> float | None:
    """How long the participant says it can hold (`Tcc-Hold-Ttl`, seconds), or None when it says nothing."""
    value = headers.get(HOLD_TTL_HEADER.lower())
    return None if value is None else _seconds(value)


def parse_json(body: bytes) -> Any:
    """The JSON value in `body`, or None when there is none: a 2xx without JSON is still a 2xx.

    What could not be stored and sent on again counts as none: see `is_portable`.
    """
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        return None
    return value if is_portable(value) else None


def is_portable(value: Any) -> bool:
    """Whether a parsed JSON value can be stored and sent on by everyone.

    It must nest at most JSON_DEPTH_MAX levels deep and hold no NaN, no infinity (RFC 8259, section 6) and no lone
    surrogate (section 8.2).
    """
    return _is_portable(value, JSON_DEPTH_MAX)


def refusal_detail(body: bytes) -> str:
    """Why a participant refused: its JSON `detail` (problem+json or not), else the first characters of its body."""
    document = parse_json(body)
    if isinstance(document, dict) and isinstance(document.get("detail"), str):
        return printable(document["detail"])
    return printable(body[: 4 * DETAIL_CHARS_MAX].decode("utf-8", "replace"))


def printable(text: str) -> str:
    """`text` on one line, without control characters and cut to DETAIL_CHARS_MAX characters."""
    cut = text[: 2 * DETAIL_CHARS_MAX]
    return "".join(c if c.isprintable() else " " for c in cut).strip()[:DETAIL_CHARS_MAX]


def _seconds(value: str) -> float | None:
    try:
        seconds = float(value.strip())
    except ValueError:
        return None
    return max(0.0, seconds) if math.isfinite(seconds) else None


def _is_portable(value: Any, levels: int) -> bool:
    match value:
        case str():
            return _has_no_lone_surrogate(value)
        case float():
            return math.isfinite(value)
        case dict():
            return levels > 0 and all(_is_portable(k, 0) and _is_portable(v, levels - 1) for k, v in value.items())
        case list():
            return levels > 0 and all(_is_portable(each, levels - 1) for each in value)
        case _:
            return True


def _has_no_lone_surrogate(text: str) -> bool:
    if text.isascii():
        return True
    try:
        text.encode()
        return True
    except UnicodeEncodeError:
        return False
