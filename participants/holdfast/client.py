"""`Client`: for initiators, who begin transactions. A small asynchronous client of the coordinator's REST API.

Responsible for beginning safely (one idempotency key for all repeats) and for making an end that is not a success
hard to mistake for one. Source: docs/protocol.md, section 3. Knows nothing of participants or databases.
"""

import asyncio
import random
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Any, Final, Literal, NoReturn, Self
from urllib.parse import quote

import httpx
from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError
from pydantic_core import to_jsonable_python

from holdfast.wire import Answer, Decision, answer_of, parse_json, refusal_detail, retry_after_s

BACKOFF_BASE_S: Final = 0.2
BACKOFF_CAP_S: Final = 10.0
RETRY_AFTER_MAX_S: Final = 60.0
WAIT_S: Final = 30.0
WAIT_MARGIN_S: Final = 5.0
"""How much longer than the wait it asked for the client waits for the answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Branch:
    """One branch of a transaction to begin: a registered `participant`, or `endpoints` (try, confirm, cancel).

    `name` defaults to the participant. `payload` is anything that pydantic can turn into JSON.
    """

    participant: str | None = None
    payload: Any = None
    name: str | None = None
    endpoints: Mapping[Literal["try", "confirm", "cancel"], str] | None = None


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class Reason(_Frozen):
    """Why a transaction is cancelled: refused, timed_out, hold_expired, requested or operator."""

    code: str
    branch: str | None = None
    detail: str | None = None


class BranchRecord(_Frozen):
    """Where a branch stands. Source: docs/protocol.md, section 3, "The transaction resource"."""

    name: str
    phase: str
    participant: str | None = None
    payload: JsonValue = None
    result: JsonValue = None
    attempts: dict[str, int] = Field(default_factory=dict)
    last_error: JsonValue = None


class Transaction(_Frozen):
    """A transaction as the coordinator reported it; a later `get` may say more."""

    id: str
    phase: str
    decision: Decision
    outcome: str | None = None
    name: str | None = None
    reference: str | None = None
    reason: Reason | None = None
    hung: bool = False
    hung_since: datetime | None = None
    hung_reason: str | None = None
    created_at: datetime | None = None
    deadline: datetime | None = None
    decided_at: datetime | None = None
    finished_at: datetime | None = None
    next_attempt_at: datetime | None = None
    branches: tuple[BranchRecord, ...] = ()

    @property
    def finished(self) -> bool:
        """Whether every branch is where the decision wants it."""
        return self.phase in ("confirmed", "cancelled")

    @property
    def confirmed(self) -> bool:
        """Finished, and confirmed. A decided confirm that is still being carried out is not yet."""
        return self.phase == "confirmed"

    @property
    def cancelled(self) -> bool:
        """Finished, and cancelled."""
        return self.phase == "cancelled"


class HoldfastError(Exception):
    """Everything that the client raises."""


class ProblemError(HoldfastError):
    """The coordinator said no (RFC 9457). `members` are the problem's members beyond the standard ones."""

    def __init__(self, status: int, document: Mapping[str, Any]) -> None:
        self.status: Final = status
        self.type: Final = str(document.get("type", "about:blank"))
        self.slug: Final = self.type.rpartition("/")[2]
        self.title: Final = str(document.get("title", ""))
        self.detail: Final = str(document.get("detail", ""))
        self.members: Final = {
            name: value
            for name, value in document.items()
            if name not in ("type", "title", "status", "detail", "instance")
        }
        super().__init__(f"{status} {self.slug}: {self.detail or self.title}")


class TransactionCancelled(HoldfastError):
    """Cancel was decided: nothing of it took, or will take, effect."""

    def __init__(self, transaction: Transaction) -> None:
        self.transaction: Final = transaction
        reason = transaction.reason
        why = "" if reason is None else f": {reason.code} {reason.branch or ''} {reason.detail or ''}".rstrip()
        super().__init__(f"transaction {transaction.id} is cancelled{why}")


class TransactionUndecided(HoldfastError):
    """Nothing was decided in the time that the caller would wait. It will be, without the caller."""

    def __init__(self, transaction: Transaction) -> None:
        self.transaction: Final = transaction
        super().__init__(f"transaction {transaction.id} is not decided yet")


class CoordinatorUnreachable(HoldfastError):
    """No answer that can be understood, after all repeats. What became of the request is not known.

    After `begin`, `idempotency_key` is what it was sent with: beginning again with it is safe, and tells.
    """

    def __init__(self, why: str, *, idempotency_key: str | None = None) -> None:
        self.idempotency_key: Final = idempotency_key
        super().__init__(f"the coordinator did not answer: {why}")


class Client:
    """A client of the coordinator at `coordinator_url`; close it, or use it with `async with`.

    `attempts_max` requests are made before giving up; each takes `timeout_s` seconds at most, beside the wait that
    it asks for. Every method raises a HoldfastError for what the network or the coordinator does.
    """

    def __init__(
        self,
        coordinator_url: str,
        *,
        attempts_max: int = 5,
        timeout_s: float = 10.0,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._attempts_max = attempts_max
        self._timeout_s = timeout_s
        none = CookieJar(DefaultCookiePolicy(allowed_domains=[]))  # one that can't be sent back breaks every request
        self._http = httpx.AsyncClient(base_url=f"{coordinator_url.rstrip('/')}/v1/", transport=transport, cookies=none)
        self._sleep: Callable[[float], Awaitable[None]] = asyncio.sleep

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def begin(
        self,
        name: str | None,
        branches: Sequence[Branch | Mapping[str, Any]],
        *,
        reference: str | None = None,
        timeout_s: float | None = None,
        try_order: Literal["parallel", "sequential"] | None = None,
        answer_at: Literal["end", "decision", "record"] = "end",
        wait_s: float = WAIT_S,
        idempotency_key: str | None = None,
    ) -> Transaction:
        """Begin a transaction and wait up to `wait_s` seconds; returns it only when confirm is decided.

        `timeout_s` is the time to the decision. With `answer_at="record"` returns at once, undecided.
        Raises TransactionCancelled, TransactionUndecided, ProblemError (nothing was recorded) or
        CoordinatorUnreachable.
        """
        key = str(uuid.uuid4()) if idempotency_key is None else idempotency_key
        wanted = {
            "name": name,
            "reference": reference,
            "timeout_s": timeout_s,
            "try_order": try_order,
            "answer_at": answer_at,
            "branches": [_branch(branch) for branch in branches],
        }
        response = await self._request(
            "POST",
            "transactions",
            json={member: value for member, value in wanted.items() if value is not None},
            headers={"Idempotency-Key": _quoted(key), "Prefer": f"wait={_whole(wait_s)}"},
            wait_s=0.0 if answer_at == "record" else wait_s,
            idempotency_key=key,
        )
        transaction = _transaction(response)
        if transaction.decision is Decision.CANCEL:
            raise TransactionCancelled(transaction)
        if transaction.decision is Decision.UNDECIDED and answer_at != "record":
            raise TransactionUndecided(transaction)
        return transaction

    async def get(self, transaction_id: str) -> Transaction:
        """The transaction as it stands. ProblemError `unknown-transaction` when there is none."""
        return _transaction(await self._request("GET", _path(transaction_id)))

    async def wait(self, transaction_id: str, *, wait_s: float = 60.0) -> Transaction:
        """Wait up to `wait_s` seconds for the end; the transaction, finished or not: look at `finished`."""
        until = time.monotonic() + wait_s
        while True:
            left_s = max(0.0, min(WAIT_S, until - time.monotonic()))
            headers = {"Prefer": f"wait={_whole(left_s)}"}
            asked_at = time.monotonic()
            transaction = _transaction(
                await self._request("GET", _path(transaction_id), headers=headers, wait_s=left_s)
            )
            if transaction.finished or time.monotonic() >= until:
                return transaction
            if time.monotonic() - asked_at < BACKOFF_BASE_S:  # it didn't wait: don't spin
                await self._sleep(BACKOFF_BASE_S)

    async def cancel(self, transaction_id: str) -> Transaction:
        """Abort what is undecided. ProblemError `already-decided` when confirm is decided."""
        return _transaction(await self._request("POST", f"{_path(transaction_id)}/cancel"))

    async def _request(
        self,
        method: str,
        path: str,
        *,
        json: Any = None,
        headers: Mapping[str, str] | None = None,
        wait_s: float = 0.0,
        idempotency_key: str | None = None,
    ) -> httpx.Response:
        """A response that says something: 2xx, or a problem with the transaction in it. Repeats what went unanswered.

        Every request here may be repeated: begin carries its key, the others are idempotent.
        """
        timeout_s = self._timeout_s + wait_s + (WAIT_MARGIN_S if wait_s else 0.0)
        why, pause_s = "", 0.0
        for attempt in range(self._attempts_max):
            if attempt:
                await self._sleep(pause_s)
            pause_s = random.random() * min(BACKOFF_CAP_S, BACKOFF_BASE_S * 2.0**attempt)
            request = self._http.build_request(method, path, json=json, headers=headers, timeout=timeout_s)
            try:
                async with asyncio.timeout(timeout_s):
                    response = await self._http.send(request)
            except Exception as error:  # whatever its class: no answer
                why = type(error).__name__
                continue
            if 200 <= response.status_code <= 299:
                return response
            if answer_of(response.status_code) is Answer.REFUSED:
                _said_no(response)
            why = f"HTTP {response.status_code}"
            pause_s = max(pause_s, min(RETRY_AFTER_MAX_S, retry_after_s(response.headers) or 0.0))
        raise CoordinatorUnreachable(why, idempotency_key=idempotency_key)


def _said_no(response: httpx.Response) -> NoReturn:
    """Raise what a 4xx means; the one about a cancelled transaction carries it."""
    document = parse_json(response.content)
    members = document if isinstance(document, dict) else {"detail": refusal_detail(response.content)}
    if str(members.get("type")).endswith("/transaction-cancelled") and isinstance(members.get("transaction"), dict):
        raise TransactionCancelled(_parsed(members["transaction"]))
    raise ProblemError(response.status_code, members)


def _transaction(response: httpx.Response) -> Transaction:
    return _parsed(parse_json(response.content))


def _parsed(document: Any) -> Transaction:
    try:
        return Transaction.model_validate(document)
    except ValidationError:
        raise CoordinatorUnreachable("what answered is no coordinator: its answer is no transaction") from None


def _branch(branch: Branch | Mapping[str, Any]) -> dict[str, Any]:
    if not isinstance(branch, Branch):
        return {member: to_jsonable_python(value) for member, value in branch.items()}
    wanted = {"name": branch.name, "participant": branch.participant, "endpoints": branch.endpoints}
    named = {member: to_jsonable_python(value) for member, value in wanted.items() if value is not None}
    return {**named, "payload": to_jsonable_python(branch.payload)}


def _path(transaction_id: str) -> str:
    return f"transactions/{quote(transaction_id, safe='')}"


def _quoted(key: str) -> str:
    """As a structured string (RFC 8941, 3.3.3)."""
    if not (key.isascii() and key.isprintable()):
        raise ValueError("idempotency_key must be printable ASCII")
    escaped = key.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _whole(seconds: float) -> int:
    """`Prefer: wait` takes whole seconds (RFC 7240, 4.3)."""
    return max(0, round(seconds))
