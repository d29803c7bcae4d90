"""Asks the coordinator what was decided (docs/reference/protocol.md, sections 3 and 5).

Makes one request and reads the answer strictly: only the coordinator's own "unknown transaction" counts as unknown, and
anything that can't be understood counts as "unreachable". Must not touch the database.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final
from urllib.parse import quote

import httpx

from holdfast.json_text import parsed

ANSWER_BYTES_MAX: Final = 65_536
UNKNOWN_TRANSACTION: Final = "/problems/unknown-transaction"
RECHECK_MIN_S: Final = 0.1
RECHECK_MAX_S: Final = 3_600.0
RECHECK_DEFAULT_S: Final = 5.0
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

    `is_silent`: there was no answer at all. `was_asked`: False while the coordinator is left alone.
    """

    verdict: Verdict
    recheck_in_s: float = 0.0
    why: str = ""
    is_silent: bool = False
    was_asked: bool = True


Ask = Callable[[str], Awaitable[Answered]]
"""Asks the coordinator what was decided about a transaction."""


class Questions:
    """Asks about each transaction once per round, and leaves a coordinator that doesn't answer alone for a while.

    After a request without any answer none is sent for `PAUSE_S`; then one request at a time probes whether the
    coordinator is back. An invalid answer causes no pause, because it may concern only one transaction.
    """

    def __init__(self, ask: Ask, clock: Callable[[], float]) -> None:
        self._ask = ask
        self._clock = clock
        self._asked: dict[str, asyncio.Task[Answered]] = {}
        self._silent_since: float | None = None
        self._is_probing = False

    def start_round(self) -> None:
        """Forget the answers: a transaction that was undecided may be decided now."""
        self._asked.clear()

    async def ask(self, transaction_id: str) -> Answered:
        """What was decided; branches of one transaction share the answer."""
        question = self._asked.get(transaction_id)
        if question is None:
            question = self._asked[transaction_id] = asyncio.create_task(self._ask_unless_paused(transaction_id))
        return await question

    async def _ask_unless_paused(self, transaction_id: str) -> Answered:
        if self._silent_since is not None:
            left_s = self._silent_since + PAUSE_S - self._clock()
            if self._is_probing or left_s > 0:
                in_s = max(RECHECK_MIN_S, min(left_s, PAUSE_S))
                return Answered(verdict=Verdict.UNREACHABLE, recheck_in_s=in_s, why="not asked", was_asked=False)
            self._is_probing = True
        try:
            answered = await self._ask(transaction_id)
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
    transport: httpx.AsyncBaseTransport, coordinator_url: str, transaction_id: str, *, timeout_s: float
) -> Answered:
    """Ask what was decided about a transaction. Never raises: every failure is "unreachable"."""
    url = f"{coordinator_url.rstrip('/')}/v1/transactions/{quote(transaction_id, safe='')}/decision"
    request = httpx.Request(
        "GET",
        url,
        headers={"Accept": "application/json, application/problem+json", "Accept-Encoding": "identity"},
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
    return _read(response.status_code, parsed(body))


async def _body(response: httpx.Response) -> bytes:
    """The raw body. No encoding was accepted, and 60 kB could unpack to 60 MB before the limit applies."""
    assert isinstance(response.stream, httpx.AsyncByteStream)
    body = bytearray()
    async for chunk in response.stream:
        body += chunk
        if len(body) > ANSWER_BYTES_MAX:
            raise ValueError(f"the answer is longer than {ANSWER_BYTES_MAX} bytes")
    return bytes(body)


def _read(status: int, document: Any) -> Answered:
    members = document if isinstance(document, dict) else {}
    if status == 404 and str(members.get("type", "")).endswith(UNKNOWN_TRANSACTION):
        return Answered(verdict=Verdict.CANCEL)
    if status == 200:
        match members.get("decision"):
            case "confirm":
                return Answered(verdict=Verdict.CONFIRM)
            case "cancel":
                return Answered(verdict=Verdict.CANCEL)
            case "undecided":
                return Answered(verdict=Verdict.UNDECIDED, recheck_in_s=_recheck_s(members.get("recheck_in_s")))
    return Answered(verdict=Verdict.UNREACHABLE, why=f"HTTP {status} without a decision; check coordinator_url")


def _recheck_s(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return RECHECK_DEFAULT_S
    return float(
        min(RECHECK_MAX_S, max(RECHECK_MIN_S, value))
    )  # clamped before conversion: an int may be too large for a float
