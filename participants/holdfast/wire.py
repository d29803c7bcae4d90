"""The wire between coordinator and participant, defined once for both sides.

Headers, bodies, and what a status code means (docs/reference/protocol.md, section 4). The coordinator's core and the
SDK's fence both take their vocabulary from here. No I/O and no clock.
"""

import json
import math
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from enum import StrEnum
from functools import lru_cache
from typing import Final
from urllib.parse import quote

from holdfast.json_text import NULL, JsonText, NotPortableError, checked, string_member

TRANSACTION_ID_HEADER: Final = "Tcc-Transaction-Id"
BRANCH_HEADER: Final = "Tcc-Branch"
OPERATION_HEADER: Final = "Tcc-Operation"
ATTEMPT_HEADER: Final = "Tcc-Attempt"
HOLD_TTL_HEADER: Final = "Tcc-Hold-Ttl"
IDEMPOTENCY_KEY_HEADER: Final = "Idempotency-Key"

DETAIL_CHARS_MAX: Final = 500
"""Maximum length of a refusal's detail and of a call's error, which are for people and end up in logs."""

DOCUMENT_BYTES_MAX: Final = 8 * 1024 * 1024
"""Upper bound of what a coordinator may accept as a payload or as a result, and of what `results` add up to."""
MESSAGE_BYTES_MAX: Final = 3 * DOCUMENT_BYTES_MAX
"""Maximum size of a message, which carries a payload, a result and `results`. A participant must accept it: a Confirm
or Cancel that it refuses hangs."""
ENVELOPE_BYTES_MAX: Final = 4096
"""Maximum size of a message without its payload and result."""

_NOT_IN_LINE: Final = frozenset({"Cc", "Zl", "Zp", "Cs"})
"""Unicode's categories of controls, line and paragraph separators, and surrogates."""

_HEADER_SAFE: Final = " !#$%&'()*+,-./:;<=>?@[]^_`{|}~"


STILL_WORKING: Final = 202
"""The status of a participant that has not finished: it is asked again, and has not failed."""

_UNAVAILABLE: Final = 503
_BUSY: Final = "/problems/busy"
_UNANSWERED_4XX: Final = frozenset({408, 425, 429})
_FORBIDDEN: Final = 403
_UNAUTHENTICATED: Final = 401
_BAD_SIGNATURE: Final = "/problems/bad-signature"


class Kind(StrEnum):
    """What a branch can do before the decision, after it, and to undo; docs/reference/patterns.md, section 1."""

    TCC = "tcc"  # Try, then Confirm or Cancel
    COMPENSABLE = "compensable"  # an action, and a compensation if the transaction is cancelled
    CHECK = "check"  # an action without effects, true when asked only
    PIVOT = "pivot"  # an action that can't be undone: its success is the decision to confirm
    RETRYABLE = "retryable"  # an action after the decision, repeated until it is done


class Operation(StrEnum):
    """What a participant is asked to do with its branch."""

    TRY = "try"
    CONFIRM = "confirm"
    CANCEL = "cancel"
    ACTION = "action"
    COMPENSATION = "compensation"


UNDOES: Final = frozenset({Operation.CANCEL, Operation.COMPENSATION})
"""The operations that undo what may have been done."""


class Answer(StrEnum):
    """The outcome of a call. There are three answers, never two: a timeout is not a refusal."""

    SUCCEEDED = "succeeded"
    REFUSED = "refused"
    UNANSWERED = "unanswered"


class Decision(StrEnum):
    """What was decided about a transaction; once it isn't `undecided`, it never changes."""

    UNDECIDED = "undecided"
    CONFIRM = "confirm"
    CANCEL = "cancel"


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One request from the coordinator to a participant.

    `payload` and `result` are JSON texts that travel as they are. `hold_ttl_s` (seconds) is set on try only, and
    `coordinator_id` (whom to believe about the decision) on try and action. `result` is the answer to the branch's Try
    or action, and is set on later operations only. `held`, on cancel and compensation only: the coordinator saw the Try
    or action succeed. `results` are those of the branches that this one names in `after`; None if it names none.
    Source: docs/reference/protocol.md, section 4, and docs/reference/patterns.md, sections 1 and 2.
    """

    transaction_id: str
    branch: str
    operation: Operation
    attempt: int
    payload: JsonText
    hold_ttl_s: float | None = None
    result: JsonText | None = None
    held: bool = False
    coordinator_id: str | None = None
    kind: Kind = Kind.TCC
    results: Mapping[str, JsonText | None] | None = None

    def headers(self) -> dict[str, str]:
        """Headers that summarise the body, for gateways, logs and services without the SDK."""
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
        envelope = {
            "transaction_id": self.transaction_id,
            "branch": self.branch,
            "kind": self.kind.value,
            "operation": self.operation.value,
            "attempt": self.attempt,
            "hold_ttl_s": self.hold_ttl_s,
            **({} if self.coordinator_id is None else {"coordinator_id": self.coordinator_id}),
            **({"held": True} if self.held else {}),
        }
        head = json.dumps(envelope, separators=(",", ":"), allow_nan=False).removesuffix("}")
        results = "" if self.results is None else f',"results":{_object(self.results)}'
        return f'{head},"payload":{self.payload},"result":{self.result or NULL}{results}}}'.encode()


def _object(members: Mapping[str, JsonText | None]) -> str:
    """A JSON object of texts that are kept as they are."""
    return f"{{{','.join(f'{json.dumps(name)}:{text or NULL}' for name, text in members.items())}}}"


@lru_cache(1024)
def header_text(text: str) -> str:
    """`text` in a form that a header can carry: non-ASCII, quotes and backslashes are percent-encoded (UTF-8)."""
    return quote(text, safe=_HEADER_SAFE, errors="replace")


def answer_of(status: int, body: bytes = b"") -> Answer:
    """What an HTTP status means as an answer to a call; of some 403s the body decides.

    202 means "still working, try again". A redirect is not followed, and is therefore no answer. Who isn't let in
    hasn't been answered either.
    """
    if is_unauthorized(status, body):
        return Answer.UNANSWERED
    if 200 <= status <= 299 and status != STILL_WORKING:
        return Answer.SUCCEEDED
    if 400 <= status <= 499 and status not in _UNANSWERED_4XX:
        return Answer.REFUSED
    return Answer.UNANSWERED


def is_unauthorized(status: int, body: bytes) -> bool:
    """Whether a participant doesn't accept who calls it: 401, or 403 with the problem `bad-signature`."""
    if status == _FORBIDDEN:
        return (string_member(body, "type") or "").endswith(_BAD_SIGNATURE)
    return status == _UNAUTHENTICATED


def is_still_working(status: int, body: bytes) -> bool:
    """Whether a participant says that it has not finished: 202, or the problem `busy`."""
    return status == STILL_WORKING or (status == _UNAVAILABLE and string_member(body, "type") == _BUSY)


def retry_after_s(headers: Mapping[str, str]) -> float | None:
    """The seconds that `Retry-After` asks for (RFC 9110, 10.2.3), or None.

    A date is compared with the response's own `Date`, never with the clock of this machine. Without a valid `Date` such
    a header is ignored.
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
    """How long the participant can hold (`Tcc-Hold-Ttl`, in seconds), or None if it doesn't say."""
    value = headers.get(HOLD_TTL_HEADER.lower())
    return None if value is None else _seconds(value)


def json_text(body: bytes) -> JsonText | None:
    """The JSON value in `body`, or None if there is none that can be kept: a 2xx without JSON is still a 2xx."""
    try:
        return checked(body)
    except NotPortableError:
        return None


def is_one_line(text: str) -> bool:
    """Whether `text`, in any alphabet, has no line break, no control character and no lone surrogate."""
    return text.isprintable() or all(_is_in_line(character) for character in text)


def refusal_detail(body: bytes) -> str:
    """Why a participant refused: the `detail` of its JSON body, or else the start of the body."""
    detail = string_member(body, "detail")
    if detail is not None:
        return printable(detail)
    return printable(body[: 4 * DETAIL_CHARS_MAX].decode("utf-8", "replace"))


def printable(text: str) -> str:
    """`text` on one line (see `is_one_line`), truncated to DETAIL_CHARS_MAX characters."""
    cut = text[: 2 * DETAIL_CHARS_MAX]
    line = cut if is_one_line(cut) else "".join(c if _is_in_line(c) else " " for c in cut)
    return line.strip()[:DETAIL_CHARS_MAX]


def _is_in_line(character: str) -> bool:
    return unicodedata.category(character) not in _NOT_IN_LINE


def _seconds(value: str) -> float | None:
    try:
        seconds = float(value.strip())
    except ValueError:
        return None
    return max(0.0, seconds) if math.isfinite(seconds) else None
