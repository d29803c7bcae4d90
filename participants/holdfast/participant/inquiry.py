"""Asks the coordinator what was decided (docs/reference/protocol.md, sections 3 and 5).

Makes one request and reads the answer strictly: only the coordinator's own "unknown transaction" counts as unknown, and
anything that can't be understood, or that another coordinator says, counts as "unreachable". Must not touch the
database.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final, NamedTuple
from urllib.parse import quote

import httpx

from holdfast.json_text import parsed
from holdfast.wire import printable

ANSWER_BYTES_MAX: Final = 65_536
UNKNOWN_TRANSACTION: Final = "/problems/unknown-transaction"
RECHECK_MIN_S: Final = 0.1
RECHECK_MAX_S: Final = 3_600.0
RECHECK_DEFAULT_S: Final = 5.0
NO_HEADERS: Final[Mapping[str, str]] = {}
PAUSE_S: Final = 5.0
"""How long a coordinator that didn't answer at all is left alone, for all transactions, in seconds."""

log = logging.getLogger("holdfast")


class Verdict(StrEnum):
    """The coordinator's answer, or that there was none."""

    CONFIRM = "confirm"
    CANCEL = "cancel"
    UNDECIDED = "undecided"
    UNREACHABLE = "unreachable"


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """`recheck_in_s` is set if undecided or not asked; `why` is set if unreachable, for the log.

    `is_silent`: there was no answer at all. `was_asked`: False while the coordinator is left alone. `is_finished`: the
    transaction is finished or unknown, so that nobody will call again.
    """

    verdict: Verdict
    recheck_in_s: float = 0.0
    why: str = ""
    is_silent: bool = False
    was_asked: bool = True
    is_finished: bool = False


class Question(NamedTuple):
    """What the coordinator is asked. `coordinator_id` names the one that the call came from; None if it didn't say."""

    transaction_id: str
    branch: str
    coordinator_id: str | None


Ask = Callable[[Question], Awaitable[Answered]]
"""Asks the coordinator what was decided about a branch."""


class Questions:
    """Asks, and leaves a coordinator that doesn't answer alone for a while.

    After a request without any answer none is sent for `PAUSE_S`; then one request at a time probes whether the
    coordinator is back. An invalid answer causes no pause, because it may concern only one transaction.
    """

    def __init__(self, ask: Ask, clock: Callable[[], float]) -> None:
        self._ask = ask
        self._clock = clock
        self._silent_since: float | None = None
        self._is_probing = False

    async def ask(self, question: Question) -> Answered:
        """What was decided, unless the coordinator is left alone."""
        if self._silent_since is not None:
            left_s = self._silent_since + PAUSE_S - self._clock()
            if self._is_probing or left_s > 0:
                in_s = max(RECHECK_MIN_S, min(left_s, PAUSE_S))
                return Answered(verdict=Verdict.UNREACHABLE, recheck_in_s=in_s, why="not asked", was_asked=False)
            self._is_probing = True
        try:
            answered = await self._ask(question)
        finally:
            self._is_probing = False
        if not answered.is_silent:
            self._silent_since = None
        else:
            if self._silent_since is None:
                log.warning("event=coordinator_silent error=%s pause_s=%s", answered.why, PAUSE_S)
            self._silent_since = self._clock()
        return answered


async def ask(
    transport: httpx.AsyncBaseTransport,
    coordinator_url: str,
    question: Question,
    *,
    timeout_s: float,
    headers: Mapping[str, str] = NO_HEADERS,
) -> Answered:
    """Ask what was decided about a branch; `headers` are sent, too. Never raises: every failure is "unreachable"."""
    path = f"/v1/transactions/{quote(question.transaction_id, safe='')}/decision"
    request = httpx.Request(
        "GET",
        f"{coordinator_url.rstrip('/')}{path}?branch={quote(question.branch, safe='')}",
        headers={"Accept": "application/json, application/problem+json", "Accept-Encoding": "identity", **headers},
        extensions={"timeout": httpx.Timeout(timeout_s).as_dict()},
    )
    try:
        async with asyncio.timeout(timeout_s):
            response = await transport.handle_async_request(request)
            try:
                body = await _body(response)
            finally:
                await response.aclose()
    except Exception as error:  # whatever the class, it is no answer
        return Answered(verdict=Verdict.UNREACHABLE, why=type(error).__name__, is_silent=True)
    return _read(response.status_code, parsed(body), question.coordinator_id)


async def _body(response: httpx.Response) -> bytes:
    """The raw body. No encoding was accepted, and 60 kB could unpack to 60 MB before the limit applies."""
    assert isinstance(response.stream, httpx.AsyncByteStream)
    body = bytearray()
    async for chunk in response.stream:
        body += chunk
        if len(body) > ANSWER_BYTES_MAX:
            raise ValueError(f"the answer is longer than {ANSWER_BYTES_MAX} bytes")
    return bytes(body)


def _read(status: int, document: Any, coordinator_id: str | None) -> Answered:
    members = document if isinstance(document, dict) else {}
    answers = members.get("coordinator_id")  # a coordinator of an older version doesn't say
    if coordinator_id is not None and answers is not None and answers != coordinator_id:
        why = f"coordinator {printable(str(answers))} answered, but the Try came from {coordinator_id}"
        return Answered(verdict=Verdict.UNREACHABLE, why=f"{why}; check coordinator_url")
    if status == 404 and str(members.get("type", "")).endswith(UNKNOWN_TRANSACTION):
        return Answered(verdict=Verdict.CANCEL, is_finished=True)
    if status == 200:
        is_finished = members.get("finished") is True
        match members.get("decision"):
            case "confirm":
                return Answered(verdict=Verdict.CONFIRM, is_finished=is_finished)
            case "cancel":
                return Answered(verdict=Verdict.CANCEL, is_finished=is_finished)
            case "undecided":
                return Answered(verdict=Verdict.UNDECIDED, recheck_in_s=_recheck_s(members.get("recheck_in_s")))
    check = "api_key" if status in (401, 403) else "coordinator_url"
    return Answered(verdict=Verdict.UNREACHABLE, why=f"HTTP {status} without a decision; check {check}")


def _recheck_s(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return RECHECK_DEFAULT_S
    return float(
        min(RECHECK_MAX_S, max(RECHECK_MIN_S, value))
    )  # clamped before conversion: an int may be too large for a float
