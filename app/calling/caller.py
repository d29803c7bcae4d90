"""One HTTP call to one branch, and what its answer means.

Every failure of any kind is `unanswered`: only the participant itself can succeed or refuse. One deadline covers the
whole call, redirects are not followed, cookies are not kept, and a response is read up to a limit. Uses the transport
directly, because httpx's client adds exactly what a coordinator must not do. No database access here.
"""

import asyncio
import os
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final

import httpx

from app.calling.routes import faults, is_no_route, no_route
from app.calling.signing_keys import SigningKeys
from app.calling.slots import Group, Slots
from app.calling.transport import TRUNCATED
from app.clock import wall_s
from app.protocol.messages import Answered, Call
from app.protocol.values import CallRecord
from holdfast import wire
from holdfast.json_text import JsonText, member_text, string_member
from holdfast.wire import Answer

RESPONSE_CHARS_KEPT: Final = 2000
"""How much of each response the call history keeps, in characters."""
LARGE_BYTES: Final = 65_536
"""A longer response, which only a raised limit admits, is checked in a thread."""


ENCODING_CHARS_MAX: Final = 40

_TOLD_WHO_CALLS: Final = frozenset({wire.Operation.TRY, wire.Operation.ACTION})
"""The operations with which a participant learns which coordinator to ask."""
_HAVE_RESULTS: Final = _TOLD_WHO_CALLS
"""The operations whose answer is kept."""


CallHeaders = tuple[tuple[str, str], ...]
"""Names and values."""


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Target:
    """Where a call goes: its URL and time limit, and the group of calls with which it shares a number of slots."""

    url: httpx.URL
    timeout_s: float
    slots_of: str
    concurrency_max: int
    signing_keys: SigningKeys | None = None
    """None: calls are not signed."""
    headers: CallHeaders = ()
    """What the participant wants with each call; secret."""

    def __repr__(self) -> str:
        return f"Target({self.url})"


@dataclass(frozen=True, slots=True)
class _Response:
    status: int
    headers: dict[str, str]
    body: bytes
    too_long: bool


class Caller:
    """Calls participants over `transport`, at most `calls_max` at a time. `clock` gives seconds since the epoch.

    Each Try says that it comes from `coordinator_id`: whom a participant in doubt may believe. Signatures carry the
    time of `wall`, because participants compare it with their own.
    """

    def __init__(
        self,
        transport: httpx.AsyncBaseTransport,
        *,
        coordinator_id: str,
        response_max_bytes: int,
        calls_max: int,
        clock: Callable[[], float],
        wall: Callable[[], float] = wall_s,
    ) -> None:
        self.coordinator_id: Final = coordinator_id
        self._transport = transport
        self._response_max_bytes = response_max_bytes
        self._clock = clock
        self._wall = wall
        self._slots = Slots(calls_max)

    async def call(self, call: Call, target: Target | str) -> tuple[Answered, CallRecord]:
        """Make the call. Raises only when cancelled. A `target` that is text says why the call can't be made."""
        started_at = self._clock()
        if isinstance(target, str):
            return self._unanswered(call, started_at, target)
        slots = self._slots
        group = slots.group(target.slots_of, target.concurrency_max)
        if not slots.take(group) and not await slots.wait(group, self._timeout_s(call, target)):
            return self._unanswered(call, started_at, f"nothing was sent: {_shortage(group)}")
        was_answered = None
        try:
            started_at, timeout_s = self._clock(), self._timeout_s(call, target)
            if timeout_s <= 0:
                return self._unanswered(call, started_at, "nothing was sent: the deadline had passed")
            answered, record = await self._call(call, target, started_at, timeout_s)
            was_answered = record.http_status is not None
            return answered, record
        finally:
            slots.give_back(group, was_answered=was_answered)

    async def route_faults(
        self, base_url: str, kinds: Collection[wire.Kind], timeout_s: float
    ) -> list[tuple[str, str]]:
        """What is wrong with the routes of a participant of these kinds at this URL: operation and message."""
        return await faults(self._transport, base_url, kinds, timeout_s)

    async def close(self) -> None:
        """Close the idle connections."""
        await self._transport.aclose()

    async def _call(
        self, call: Call, target: Target, started_at: float, timeout_s: float
    ) -> tuple[Answered, CallRecord]:
        try:
            async with asyncio.timeout(timeout_s):
                response = await self._exchange(call, target)
        except (TimeoutError, httpx.TimeoutException):
            return self._unanswered(call, started_at, f"no answer within {timeout_s:.3g} s")
        except Exception as error:  # transports raise anything; whatever the class, it is no answer
            return self._unanswered(call, started_at, f"{type(error).__name__}: {error}")
        if len(response.body) > LARGE_BYTES:
            return await asyncio.to_thread(self._read, call, target.url, started_at, response)
        return self._read(call, target.url, started_at, response)

    def _timeout_s(self, call: Call, target: Target) -> float:
        if call.deadline is None:
            return target.timeout_s
        return max(0.0, min(target.timeout_s, call.deadline - self._clock()))

    async def _exchange(self, call: Call, target: Target) -> _Response:
        branch = call.branch
        message = wire.Message(
            transaction_id=call.transaction_id,
            branch=branch.name,
            operation=call.operation,
            attempt=call.attempt,
            payload=branch.payload,
            hold_ttl_s=call.hold_ttl_s,
            result=None if call.operation in _HAVE_RESULTS else branch.result,
            held=call.operation in wire.UNDOES and branch.was_held,
            coordinator_id=self.coordinator_id if call.operation in _TOLD_WHO_CALLS else None,
            kind=branch.kind,
            results=call.results,
        )
        body = message.body()
        headers = {**message.headers(), **dict(target.headers)}
        if target.signing_keys is not None:
            headers |= target.signing_keys.headers(message, body, now=self._clock(), timestamp=int(self._wall()))
        request = _request(target.url, headers, body, _traceparent(call))
        response = await self._transport.handle_async_request(request)
        try:
            headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in response.headers.raw}
            return _Response(response.status_code, headers, *await self._body(response))
        finally:
            await _stream(response).aclose()

    async def _body(self, response: httpx.Response) -> tuple[bytes, bool]:
        """The body, and whether it was cut off at the limit."""
        body = bytearray()
        async for chunk in _stream(response):
            body += chunk
            if len(body) > self._response_max_bytes:
                return bytes(body[: self._response_max_bytes]), True
        return bytes(body), TRUNCATED in response.extensions

    def _read(self, call: Call, url: httpx.URL, started_at: float, response: _Response) -> tuple[Answered, CallRecord]:
        answer = _answer_to(call, response)
        result = self._result(call, answer, response)
        already = answer is Answer.REFUSED and _is_already_done(call, response)
        if already and call.branch.kind is wire.Kind.PIVOT:
            result = member_text(response.body, "result")
        error = None
        match answer:
            case _ if already and call.branch.kind is wire.Kind.PIVOT:
                pass  # its success, as it turns out
            case Answer.SUCCEEDED if response.too_long and call.operation in _HAVE_RESULTS:
                error = f"the result is longer than {self._response_max_bytes} bytes (HOLDFAST_RESPONSE_MAX_BYTES)"
            case Answer.SUCCEEDED if call.operation in _HAVE_RESULTS and result is None and response.body.strip():
                error = f"the result is null, because {_encoded(response) or 'the body is not JSON'}"
            case Answer.REFUSED if is_no_route(response.status, response.headers, response.body):
                error = no_route(response.status, url)
            case Answer.REFUSED | Answer.UNANSWERED if encoded := _encoded(response):
                error = f"HTTP {response.status}; {encoded}"
            case Answer.REFUSED if call.operation in _HAVE_RESULTS and call.branch.kind is not wire.Kind.RETRYABLE:
                error = wire.refusal_detail(response.body) or f"HTTP {response.status}"
            case Answer.REFUSED | Answer.UNANSWERED:
                error = f"HTTP {response.status} {wire.refusal_detail(response.body)}".strip()
                if answer is not wire.answer_of(response.status, response.body):
                    error = wire.printable(f"{error}; only application/problem+json refuses a pivot")
        return (
            Answered(
                branch=call.branch.name,
                operation=call.operation,
                attempt=call.attempt,
                answer=answer,
                result=result,
                error=error,
                in_progress=wire.is_still_working(response.status, response.body),
                retry_after_s=wire.retry_after_s(response.headers),
                hold_ttl_s=wire.hold_ttl_s(response.headers),
                too_long=response.too_long and (answer is Answer.SUCCEEDED or already),
                unauthorized=wire.is_unauthorized(response.status, response.body),
                already=already,
                no_route=answer is Answer.REFUSED and is_no_route(response.status, response.headers, response.body),
            ),
            self._record(call, started_at, answer, error, response),
        )

    def _result(self, call: Call, answer: Answer, response: _Response) -> JsonText | None:
        keeps = answer is Answer.SUCCEEDED and call.operation in _HAVE_RESULTS and not response.too_long
        return wire.json_text(response.body) if keeps else None

    def _unanswered(self, call: Call, started_at: float, error: str) -> tuple[Answered, CallRecord]:
        error = wire.printable(error)
        answered = Answered(
            branch=call.branch.name,
            operation=call.operation,
            attempt=call.attempt,
            answer=Answer.UNANSWERED,
            error=error,
        )
        return answered, self._record(call, started_at, Answer.UNANSWERED, error, None)

    def _record(
        self, call: Call, started_at: float, answer: Answer, error: str | None, response: _Response | None
    ) -> CallRecord:
        text = response.body[: 4 * RESPONSE_CHARS_KEPT].decode("utf-8", "replace") if response else None
        return CallRecord(
            transaction_id=call.transaction_id,
            branch=call.branch.name,
            operation=call.operation,
            attempt=call.attempt,
            started_at=started_at,
            duration_ms=round((self._clock() - started_at) * 1000, 3),
            answer=answer,
            http_status=response.status if response else None,
            error=error,
            response=text.replace("\x00", "�")[:RESPONSE_CHARS_KEPT] if text else None,
        )


def _answer_to(call: Call, response: _Response) -> Answer:
    """What the response means. A pivot is refused by a problem document only: everything else may have happened."""
    answer = wire.answer_of(response.status, response.body)
    if answer is Answer.REFUSED and call.branch.kind is wire.Kind.PIVOT and call.operation is wire.Operation.ACTION:
        media_type = response.headers.get("content-type", "").partition(";")[0].strip().lower()
        return answer if media_type == "application/problem+json" else Answer.UNANSWERED
    return answer


def _is_already_done(call: Call, response: _Response) -> bool:
    """Whether it is refused because the opposite was done: a 409 of a type `already-…`, `already-done` of a pivot."""
    slug = (string_member(response.body, "type") or "").rpartition("/")[2]
    if call.branch.kind is wire.Kind.PIVOT:
        is_already = call.operation is wire.Operation.CANCEL and slug == "already-done"
    else:
        is_already = slug.startswith("already-")
    return is_already and response.status == HTTPStatus.CONFLICT


def _shortage(group: Group) -> str:
    """Which limit kept a call from being made."""
    if group.in_progress >= group.concurrency_max:
        return f"all {group.concurrency_max} slots were taken (concurrency_max)"
    if group.halvings:
        return f"the participant doesn't answer, and {group.in_progress} of its calls were in progress"
    return "too many calls were in progress (HOLDFAST_CALLS_MAX)"


def _encoded(response: _Response) -> str | None:
    """Why the body can't be read, if the participant has compressed it: it was asked not to."""
    encoding = wire.printable(response.headers.get("content-encoding", ""))[:ENCODING_CHARS_MAX]
    if not encoding or encoding.lower() == "identity" or wire.json_text(response.body or b"0") is not None:
        return None
    return f"the response has Content-Encoding {encoding}, although identity was asked for"


def _stream(response: httpx.Response) -> httpx.AsyncByteStream:
    assert isinstance(response.stream, httpx.AsyncByteStream)
    return response.stream


def _request(url: httpx.URL, headers: Mapping[str, str], body: bytes, traceparent: str) -> httpx.Request:
    """The request with all its headers. Letting httpx encode the body and add headers costs several times as much."""
    sent = {
        "Host": url.netloc.decode("ascii"),
        "Content-Length": str(len(body)),
        "Accept-Encoding": "identity",
        "User-Agent": "holdfast",
        "traceparent": traceparent,
        **headers,
    }
    raw = [(name.encode("ascii"), value.encode("ascii")) for name, value in sent.items()]
    return httpx.Request("POST", url, headers=raw, stream=httpx.ByteStream(body))


def _traceparent(call: Call) -> str:
    """A span in the initiator's trace, or else in a trace with the transaction's id (W3C Trace Context)."""
    trace_id, flags = call.transaction_id.replace("-", ""), "01"
    if call.traceparent is not None:
        _, trace_id, _, flags = call.traceparent.split("-")
    return f"00-{trace_id}-{os.urandom(8).hex()}-{flags}"
