"""`Client`: for initiators, which begin transactions. A small asynchronous client of the coordinator's REST API.

Begins safely (one idempotency key for all retries), and makes a failed transaction hard to mistake for a success.
Source: docs/reference/protocol.md, section 3. Independent of participants and databases.
"""

import asyncio
import logging
import random
import ssl
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Literal, NoReturn, Self
from urllib.parse import quote

import httpx
from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from holdfast.connections import Connections, check_tls
from holdfast.json_text import parsed, text_of
from holdfast.jsonable import jsonable
from holdfast.urls import base_url, credentials, printable_url
from holdfast.wire import Answer, Decision, answer_of, printable, refusal_detail, retry_after_s

log = logging.getLogger("holdfast")

BACKOFF_BASE_S: Final = 0.2
BACKOFF_CAP_S: Final = 3.0
RETRY_S: Final = 30.0
"""Longer than a coordinator needs to restart (5 s) or another replica to take over (its lease, 15 s)."""
WAIT_S: Final = 60.0
"""Longer than the coordinator's default time to a decision (30 s), so that a transaction that times out is decided."""
WAIT_MARGIN_S: Final = 5.0
"""How much longer than the requested wait the client waits for the answer."""
CAUSE_CHARS_MAX: Final = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Branch:
    """A branch of a new transaction: a registered `participant`, or `endpoints` (URLs by operation).

    `name` defaults to the participant. `payload` is anything that pydantic can convert to JSON. `call_timeout_s` limits
    a call to `endpoints`; a participant has its own limit in the registry. `kind` says what it can do before the
    decision, after it and to undo; None means TCC. `after` names the branches that its first call waits for, whose
    results its calls carry. Source: docs/reference/patterns.md.
    """

    participant: str | None = None
    payload: Any = None
    name: str | None = None
    endpoints: Mapping[Literal["try", "confirm", "cancel", "action", "compensation"], str] | None = None
    call_timeout_s: float | None = None
    kind: Literal["tcc", "compensable", "check", "pivot", "retryable"] | None = None
    after: Sequence[str] = ()


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class Reason(_Frozen):
    """Why a transaction was cancelled: refused, timed_out, hold_expired, requested or operator."""

    code: str
    branch: str | None = None
    detail: str | None = None


class BranchRecord(_Frozen):
    """Where a branch stands. Source: docs/reference/protocol.md, section 3, "The transaction resource".

    Numbers in `payload` and `result` keep every digit: `Decimal(str(number))` has them.
    """

    name: str
    phase: str
    participant: str | None = None
    kind: str = "tcc"
    payload: Any = None
    result: Any = None
    attempts: dict[str, int] = Field(default_factory=dict)
    last_error: JsonValue = None


class Transaction(_Frozen):
    """A transaction as the coordinator reported it; a later `get` may show more."""

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
        """Whether the decision has been carried out in every branch."""
        return self.phase in ("confirmed", "cancelled")

    @property
    def confirmed(self) -> bool:
        """Finished, with every branch confirmed; False while a decided confirm is still being carried out."""
        return self.phase == "confirmed" and not self.mixed

    @property
    def cancelled(self) -> bool:
        """Finished, with every branch cancelled."""
        return self.phase == "cancelled" and not self.mixed

    @property
    def mixed(self) -> bool:
        """Finished, but an operator resolved a branch against the decision: neither all nor nothing."""
        return self.outcome == "mixed"


class HoldfastError(Exception):
    """Base class of what the client raises when the network or the coordinator fails.

    `idempotency_key` is the key that `begin` was sent with, and None after other methods. Calling `begin` again with it
    and the same arguments is safe, and tells what happened to the transaction.
    """

    idempotency_key: str | None = None


class ProblemError(HoldfastError):
    """The coordinator refused the request (RFC 9457). `members` are the problem's non-standard members."""

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


class AccessDenied(ProblemError):
    """The coordinator doesn't accept who asks (401), or doesn't let them do this (403). Nothing was recorded."""


class TransactionCancelled(HoldfastError):
    """The transaction was cancelled: no part of it has taken effect, or will."""

    def __init__(self, transaction: Transaction) -> None:
        self.transaction: Final = transaction
        reason = transaction.reason
        why = "" if reason is None else f": {reason.code} {reason.branch or ''} {reason.detail or ''}".rstrip()
        super().__init__(f"transaction {transaction.id} is cancelled{why}")


class TransactionUndecided(HoldfastError):
    """There is no decision yet, after the time that the caller was willing to wait. It goes on without the caller."""

    def __init__(self, transaction: Transaction) -> None:
        self.transaction: Final = transaction
        super().__init__(f"transaction {transaction.id} is not decided yet; wait() for it, or cancel() it")


class TransactionMixed(HoldfastError):
    """An operator resolved a branch against the decision: a part of the transaction took effect, and a part didn't."""

    def __init__(self, transaction: Transaction) -> None:
        self.transaction: Final = transaction
        decided = f"decided {transaction.decision.value}"
        branches = ", ".join(f"{branch.name} {branch.phase}" for branch in transaction.branches)
        super().__init__(f"transaction {transaction.id} is mixed: {decided}; {branches}".rstrip("; "))


class CoordinatorUnreachable(HoldfastError):
    """No valid answer after all attempts. The request may or may not have taken effect.

    `url` is what was requested, `attempts` how often. If the last failure was an exception, it is the `__cause__`.
    """

    def __init__(self, why: str, *, url: str, attempts: int) -> None:
        self.url: Final = url
        self.attempts: Final = attempts
        times = "1 attempt" if attempts == 1 else f"{attempts} attempts"
        super().__init__(f"the coordinator did not answer at {url} ({times}): {why}")


def idempotency_key_of(error: BaseException | None) -> str | None:
    """The key of the `begin` that `error` ended; also for the TimeoutError of an outer asyncio.timeout."""
    for _ in range(10):
        if error is None:
            return None
        key = getattr(error, "idempotency_key", None)
        if isinstance(key, str):
            return key
        error = error.__cause__ or error.__context__
    return None


class Client:
    """A client of the coordinator at `coordinator_url`, which may need an `api_key`. Close it, or use `async with`.

    Retries a request with back-off for `retry_s` seconds on top of the wait that it asks for, then gives up. An attempt
    takes at most `timeout_s` seconds on top of that wait. `attempts_max` limits their number, too. `tls` is for a
    coordinator with a private certificate authority, or one that asks for a certificate. Usable from several event
    loops; each has its own connections. Every method raises a HoldfastError when the network or the coordinator fails.
    Raises ValueError for a URL that can't be a coordinator's, or a key that can't be one.
    """

    def __init__(
        self,
        coordinator_url: str,
        *,
        retry_s: float = RETRY_S,
        attempts_max: int | None = None,
        timeout_s: float = 10.0,
        tls: ssl.SSLContext | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
        api_key: str | None = None,
    ) -> None:
        check_tls(tls, transport)
        self._base_url = f"{base_url(coordinator_url)}/v1/"
        self._credentials = credentials(api_key)
        self._retry_s = retry_s
        self._attempts_max = attempts_max
        self._timeout_s = timeout_s
        self._connections = Connections(self._base_url, transport, tls)
        self._announced = False
        self._closed = False
        self._sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
        self._clock: Callable[[], float] = time.monotonic

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections of this event loop; those of another loop are closed when it ends."""
        self._closed = True
        await self._connections.close()

    async def begin(
        self,
        name: str | None,
        branches: Sequence[Branch | Mapping[str, Any]],
        *,
        reference: str | None = None,
        timeout_s: float | None = None,
        try_order: Literal["parallel", "sequential"] | None = None,
        undo: Literal["parallel", "reverse"] | None = None,
        answer_at: Literal["end", "decision", "record"] = "end",
        wait_s: float = WAIT_S,
        idempotency_key: str | None = None,
    ) -> Transaction:
        """Begin a transaction, wait up to `wait_s` seconds, and return it if confirm was decided.

        `timeout_s` is the time to the decision. With `answer_at="record"` it returns at once, undecided. Raises
        TransactionCancelled, TransactionMixed, TransactionUndecided, ProblemError (nothing was recorded) or
        CoordinatorUnreachable. Each carries the `idempotency_key`, and so does a cancellation from outside
        (`idempotency_key_of`). Pass a key that you store with the order, so that you can repeat the call after a crash.
        """
        key = str(uuid.uuid4()) if idempotency_key is None else idempotency_key
        wanted = {
            "name": name,
            "reference": reference,
            "timeout_s": timeout_s,
            "try_order": try_order,
            "undo": undo,
            "answer_at": answer_at,
            "branches": [_branch(branch) for branch in branches],
        }
        try:
            response = await self._request(
                "POST",
                "transactions",
                body={member: value for member, value in wanted.items() if value is not None},
                headers={"Idempotency-Key": _quoted(key), "Prefer": f"wait={_whole(wait_s)}"},
                wait_s=0.0 if answer_at == "record" else wait_s,
            )
            return _begun(self._transaction(response), may_be_undecided=answer_at == "record")
        except (HoldfastError, asyncio.CancelledError) as error:
            error.idempotency_key = key  # type: ignore[union-attr]
            raise

    async def get(self, transaction_id: str) -> Transaction:
        """The transaction as it stands. Raises ProblemError `unknown-transaction` if there is none."""
        return self._transaction(await self._request("GET", _path(transaction_id)))

    async def wait(self, transaction_id: str, *, wait_s: float = 60.0) -> Transaction:
        """Wait up to `wait_s` seconds for the end, and return the transaction; `finished` says whether it has ended."""
        until = time.monotonic() + wait_s
        while True:
            left_s = max(0.0, min(WAIT_S, until - time.monotonic()))
            headers = {"Prefer": f"wait={_whole(left_s)}"}
            asked_at = time.monotonic()
            response = await self._request("GET", _path(transaction_id), headers=headers, wait_s=left_s)
            transaction = self._transaction(response)
            if transaction.finished or time.monotonic() >= until:
                return transaction
            if time.monotonic() - asked_at < BACKOFF_BASE_S:  # the coordinator didn't wait: don't spin
                await self._sleep(BACKOFF_BASE_S)

    async def cancel(self, transaction_id: str) -> Transaction:
        """Cancel an undecided transaction. Raises ProblemError `already-decided` if confirm was decided."""
        return self._transaction(await self._request("POST", f"{_path(transaction_id)}/cancel"))

    async def _request(
        self,
        method: str,
        path: str,
        *,
        body: Any = None,
        headers: Mapping[str, str] | None = None,
        wait_s: float = 0.0,
    ) -> httpx.Response:
        """Send a request until it is answered, and return the 2xx response. Raises what a refusal means.

        Every request here can be repeated: begin carries its key, and the others are idempotent.
        """
        http = await self._http()
        content = None if body is None else text_of(body).encode()
        headers = {
            **self._credentials,
            **(headers or {}),
            **({} if body is None else {"Content-Type": "application/json"}),
        }
        until = self._clock() + wait_s + self._retry_s
        attempt_s = self._timeout_s + wait_s + (WAIT_MARGIN_S if wait_s else 0.0)
        attempts, cause = 0, None
        while True:
            attempts += 1
            timeout_s = max(0.0, min(attempt_s, until - self._clock()))
            request = http.build_request(method, path, content=content, headers=headers, timeout=timeout_s)
            pause_s = (0.5 + 0.5 * random.random()) * min(BACKOFF_CAP_S, BACKOFF_BASE_S * 2.0 ** min(attempts - 1, 10))  # noqa: S311 - jitter
            try:
                async with asyncio.timeout(timeout_s):
                    response = await http.send(request)
            except Exception as error:  # whatever the class, it is no answer
                why, cause = _cause(error, timeout_s), error
            else:
                if 200 <= response.status_code <= 299:
                    return response
                if response.status_code == 401 or answer_of(response.status_code) is Answer.REFUSED:
                    self._said_no(response)
                why, cause = _status(response), None
                pause_s = max(pause_s, retry_after_s(response.headers) or 0.0)
            if attempts == self._attempts_max or self._clock() + pause_s >= until:
                raise CoordinatorUnreachable(why, url=printable_url(str(request.url)), attempts=attempts) from cause
            await self._sleep(pause_s)

    async def _http(self) -> httpx.AsyncClient:
        if self._closed:
            raise RuntimeError("this Client is closed: create a new one")
        if not self._announced:
            self._announced = True
            log.info("event=client_started coordinator=%s retry_s=%s", printable_url(self._base_url), self._retry_s)
        return await self._connections.of_this_loop()

    def _transaction(self, response: httpx.Response) -> Transaction:
        return self._parsed(parsed(response.content))

    def _parsed(self, document: Any) -> Transaction:
        try:
            return Transaction.model_validate(document)
        except ValidationError:
            why = "the answer is not a transaction; check coordinator_url"
            raise CoordinatorUnreachable(why, url=printable_url(self._base_url), attempts=1) from None

    def _said_no(self, response: httpx.Response) -> NoReturn:
        """Raise the error that a 4xx means; it carries the transaction if that is finished."""
        document = parsed(response.content)
        members = document if isinstance(document, dict) else {"detail": refusal_detail(response.content)}
        end = _ENDS.get(str(members.get("type")).rpartition("/")[2])
        if end is not None and isinstance(members.get("transaction"), dict):
            transaction = self._parsed(members["transaction"])
            raise TransactionMixed(transaction) if transaction.mixed else end(transaction)
        kind = AccessDenied if response.status_code in (401, 403) else ProblemError
        raise kind(response.status_code, members)


_ENDS: Final[Mapping[str, type[TransactionCancelled | TransactionMixed]]] = {
    "transaction-cancelled": TransactionCancelled,
    "transaction-mixed": TransactionMixed,
}


def _begun(transaction: Transaction, *, may_be_undecided: bool) -> Transaction:
    if transaction.mixed:
        raise TransactionMixed(transaction)
    if transaction.decision is Decision.CANCEL:
        raise TransactionCancelled(transaction)
    if transaction.decision is Decision.UNDECIDED and not may_be_undecided:
        raise TransactionUndecided(transaction)
    return transaction


def _cause(error: Exception, timeout_s: float) -> str:
    """Describe a failed attempt; some exceptions have no message beyond their class."""
    if isinstance(error, TimeoutError | httpx.TimeoutException) and not str(error):
        return f"{type(error).__name__}: no answer within {timeout_s:.1f} s"
    return f"{type(error).__name__}: {printable(str(error))}"[:CAUSE_CHARS_MAX].rstrip(": ")


def _status(response: httpx.Response) -> str:
    document = parsed(response.content)
    detail = refusal_detail(response.content) if isinstance(document, dict) and "detail" in document else ""
    return f"HTTP {response.status_code}: {detail}"[:CAUSE_CHARS_MAX].rstrip(": ")


def _branch(branch: Branch | Mapping[str, Any]) -> dict[str, Any]:
    if not isinstance(branch, Branch):
        return {member: jsonable(value) for member, value in branch.items()}
    wanted = {
        "name": branch.name,
        "participant": branch.participant,
        "endpoints": branch.endpoints,
        "call_timeout_s": branch.call_timeout_s,
        "kind": branch.kind,
        "after": list(branch.after) or None,
    }
    named = {member: jsonable(value) for member, value in wanted.items() if value is not None}
    return {**named, "payload": jsonable(branch.payload)}


def _path(transaction_id: str) -> str:
    return f"transactions/{quote(transaction_id, safe='')}"


def _quoted(key: str) -> str:
    """The key as a structured string (RFC 8941, 3.3.3)."""
    if not (key.isascii() and key.isprintable()):
        raise ValueError("idempotency_key must consist of printable ASCII characters")
    escaped = key.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _whole(seconds: float) -> int:
    """`Prefer: wait` takes whole seconds (RFC 7240, 4.3)."""
    return max(0, round(seconds))
