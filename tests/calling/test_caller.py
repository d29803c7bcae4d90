"""One call by itself, over a transport that answers as it is told: what is sent, and what is kept of the answer."""

import asyncio
import gzip
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any, Final

import httpx
import pytest

from app.calling.caller import RESPONSE_CHARS_KEPT, Caller, Target
from app.protocol.messages import Answered, Call
from app.protocol.values import Branch, CallRecord
from holdfast.json_text import text_of
from holdfast.wire import DETAIL_CHARS_MAX, Answer, Operation

ID: Final = "01a1fc2e-20e8-7db5-893d-508caa6c9bfb"
URL: Final = httpx.URL("http://inventory:8001/tcc?a=b%20c")
TRACE: Final = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00"
BODY_MAX: Final = 5 * RESPONSE_CHARS_KEPT


class Body(httpx.AsyncByteStream):
    """A body in two chunks that knows whether it was closed."""

    def __init__(self, content: bytes) -> None:
        self._content = content
        self.closed = False

    async def __aiter__(self) -> AsyncIterator[bytes]:
        half = len(self._content) // 2
        yield self._content[:half]
        yield self._content[half:]

    async def aclose(self) -> None:
        self.closed = True


class Answers(httpx.AsyncBaseTransport):
    """Answers each request alike; each answer takes a second of the clock."""

    def __init__(self, status: int = 200, body: bytes = b"", **headers: str) -> None:
        self._status = status
        self._headers = headers
        self.body = Body(body)
        self.requests: list[httpx.Request] = []
        self.now = 1000.0
        self.closed = False

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        self.now += 1.25
        return httpx.Response(self._status, headers=self._headers, stream=self.body)

    async def aclose(self) -> None:
        self.closed = True


def caller_over(transport: Answers, *, calls_max: int = 10) -> Caller:
    return Caller(
        transport, coordinator_id="c-1", response_max_bytes=BODY_MAX, calls_max=calls_max, clock=lambda: transport.now
    )


def call(operation: Operation = Operation.CONFIRM, **fields: Any) -> Call:
    branch = Branch(
        name="stock", participant="inventory", payload=text_of({"sku": 1}), result=text_of({"hold_id": "h-1"})
    )
    return Call(transaction_id=ID, branch=branch, operation=operation, attempt=3, **fields)


def target(timeout_s: float = 30.0) -> Target:
    return Target(url=URL, timeout_s=timeout_s, slots_of="inventory", concurrency_max=2)


async def called(transport: Answers, made: Call | None = None) -> tuple[Answered, CallRecord]:
    return await caller_over(transport).call(made or call(), target())


async def test_a_request_has_these_headers_and_no_others() -> None:
    transport = Answers()
    await called(transport, call(traceparent=TRACE))
    (request,) = transport.requests
    assert (request.method, request.url) == ("POST", URL)
    headers = dict(request.headers)
    _, trace_id, span_id, flags = headers.pop("traceparent").split("-")
    assert (trace_id, len(span_id), flags) == (TRACE.split("-")[1], 16, "00")
    assert span_id != TRACE.split("-")[2], "each call is a span of its own"
    assert headers == {
        "host": "inventory:8001",
        "content-length": str(len(await request.aread())),
        "accept-encoding": "identity",
        "user-agent": "holdfast",
        "content-type": "application/json",
        "accept": "application/json, application/problem+json",
        "tcc-transaction-id": ID,
        "tcc-branch": "stock",
        "tcc-operation": "confirm",
        "tcc-attempt": "3",
        "idempotency-key": f'"{ID}:stock:confirm"',
    }


async def test_without_a_trace_of_the_initiators_the_transaction_is_the_trace() -> None:
    transport = Answers()
    await called(transport)
    version, trace_id, span_id, flags = transport.requests[0].headers["traceparent"].split("-")
    assert (version, trace_id, len(span_id), flags) == ("00", ID.replace("-", ""), 16, "01")


@pytest.mark.parametrize("operation", Operation)
async def test_what_try_answered_is_sent_to_the_others_alone(operation: Operation) -> None:
    transport = Answers()
    await called(transport, call(operation, hold_ttl_s=60.0 if operation is Operation.TRY else None))
    sent = httpx.Response(200, content=await transport.requests[0].aread()).json()
    is_first = operation in (Operation.TRY, Operation.ACTION)
    assert sent["result"] == (None if is_first else {"hold_id": "h-1"})
    assert sent["hold_ttl_s"] == (60.0 if operation is Operation.TRY else None)
    assert (sent["payload"], sent["attempt"], sent["branch"]) == ({"sku": 1}, 3, "stock")


@pytest.mark.parametrize("hold_until", [None, 1010.0])
@pytest.mark.parametrize("operation", Operation)
async def test_only_a_cancel_of_what_was_seen_to_hold_says_so(operation: Operation, hold_until: float | None) -> None:
    transport = Answers()
    made = call(operation)
    await called(transport, replace(made, branch=replace(made.branch, hold_until=hold_until)))
    sent = httpx.Response(200, content=await transport.requests[0].aread()).json()
    says = operation in (Operation.CANCEL, Operation.COMPENSATION) and hold_until is not None
    assert ("held" in sent, sent.get("held", False)) == (says, says)


@pytest.mark.parametrize(
    ("status", "answer"), [(200, Answer.SUCCEEDED), (409, Answer.REFUSED), (503, Answer.UNANSWERED)]
)
async def test_the_history_says_what_came_of_a_call(status: int, answer: Answer) -> None:
    answered, record = await called(Answers(status, b'{"detail": "words"}'))
    error = None if answer is Answer.SUCCEEDED else f"HTTP {status} words"
    assert record == CallRecord(
        transaction_id=ID,
        branch="stock",
        operation=Operation.CONFIRM,
        attempt=3,
        started_at=1000.0,
        duration_ms=1250.0,
        answer=answer,
        http_status=status,
        error=error,
        response='{"detail": "words"}',
    )
    assert (answered.branch, answered.operation, answered.attempt) == ("stock", Operation.CONFIRM, 3)
    assert (answered.answer, answered.error) == (answer, error)
    assert answered.result is None, "only a Try has a result"


SIGNATURE: Final = b'{"type": "/problems/bad-signature", "detail": "stale"}'


@pytest.mark.parametrize(
    ("status", "body", "answer", "unauthorized"),
    [
        (401, b"", Answer.UNANSWERED, True),
        (401, b"<html>", Answer.UNANSWERED, True),
        (403, SIGNATURE, Answer.UNANSWERED, True),
        (403, SIGNATURE.replace(b"/problems", b"https://shop.example/problems"), Answer.UNANSWERED, True),
        (403, b'{"type": "/problems/forbidden"}', Answer.REFUSED, False),
        (403, b'{"type": 7}', Answer.REFUSED, False),
        (403, b"no entry", Answer.REFUSED, False),
        (409, SIGNATURE, Answer.REFUSED, False),
        (503, SIGNATURE, Answer.UNANSWERED, False),
        (200, SIGNATURE, Answer.SUCCEEDED, False),
    ],
)
@pytest.mark.parametrize("operation", Operation)
async def test_who_is_turned_away_has_no_answer(
    operation: Operation, status: int, body: bytes, answer: Answer, unauthorized: bool
) -> None:
    answered, record = await called(Answers(status, body), call(operation))
    assert (answered.answer, answered.unauthorized, record.answer) == (answer, unauthorized, answer)
    if body == SIGNATURE and status == 403:
        assert record.error == "HTTP 403 stale"


@pytest.mark.parametrize("body", [b"", b'{"type": "/problems/busy"}', b'{"type": "/problems/unavailable"}'])
@pytest.mark.parametrize("status", [200, 202, 204, 302, 404, 425, 429, 500, 503])
async def test_202_and_busy_say_that_the_participant_is_still_working(status: int, body: bytes) -> None:
    answered, _ = await called(Answers(status, body))
    assert answered.in_progress == (status == 202 or (status == 503 and b"busy" in body))


async def test_the_history_says_why_nothing_was_sent() -> None:
    transport = Answers()
    answered, record = await caller_over(transport).call(call(), "not\nregistered")
    assert (answered.branch, answered.operation, answered.attempt) == ("stock", Operation.CONFIRM, 3)
    assert record == CallRecord(
        transaction_id=ID,
        branch="stock",
        operation=Operation.CONFIRM,
        attempt=3,
        started_at=1000.0,
        duration_ms=0.0,
        answer=Answer.UNANSWERED,
        error="not registered",
    )


@pytest.mark.parametrize(
    ("operation", "body", "error"),
    [
        (Operation.TRY, b'{"detail": "sold out"}', "sold out"),
        (Operation.TRY, b"", "HTTP 409"),
        (Operation.CONFIRM, b'{"detail": "sold out"}', "HTTP 409 sold out"),
        (Operation.CANCEL, b"", "HTTP 409"),
    ],
)
async def test_the_words_of_a_refusal_are_the_participants_own(operation: Operation, body: bytes, error: str) -> None:
    answered, record = await called(Answers(409, body), call(operation))
    assert answered.error == record.error == error


@pytest.mark.parametrize(
    ("body", "kept"),
    [
        (b"", None),
        (b"a\0b", "a�b"),
        (b"\xff{", "�{"),
        (b"x" * (RESPONSE_CHARS_KEPT + 1), "x" * RESPONSE_CHARS_KEPT),
        ("€".encode() * (RESPONSE_CHARS_KEPT + 1), "€" * RESPONSE_CHARS_KEPT),
        ("😀".encode() * (RESPONSE_CHARS_KEPT + 1), "😀" * RESPONSE_CHARS_KEPT),
    ],
    ids=["none", "NUL", "no UTF-8", "long", "of three bytes each", "of four bytes each"],
)
async def test_the_history_keeps_so_many_characters_of_an_answer(body: bytes, kept: str | None) -> None:
    _, record = await called(Answers(200, body))
    assert record.response == kept


@pytest.mark.parametrize("length", [BODY_MAX, BODY_MAX + 1])
async def test_a_body_is_read_to_its_limit_and_closed(length: int) -> None:
    transport = Answers(200, b"1".ljust(length))
    answered, _ = await called(transport, call(Operation.TRY))
    assert answered.answer is Answer.SUCCEEDED
    assert answered.too_long == (length > BODY_MAX)
    assert answered.result == (None if answered.too_long else "1")
    assert (answered.error is not None) == answered.too_long
    assert transport.body.closed


async def test_the_detail_of_a_long_refusal_is_cut() -> None:
    answered, _ = await called(Answers(409, b'"no' + b"o" * BODY_MAX), call(Operation.TRY))
    assert answered.answer is Answer.REFUSED
    assert answered.error == ('"no' + "o" * BODY_MAX)[: min(BODY_MAX, DETAIL_CHARS_MAX)]


PACKED: Final = gzip.compress(b'{"detail": "sold out"}', mtime=0)
UNASKED: Final = "the response has Content-Encoding gzip, although identity was asked for"


@pytest.mark.parametrize(
    ("status", "body", "encoding", "result", "error"),
    [
        (200, PACKED, "gzip", None, f"the result is null, because {UNASKED}"),
        (200, PACKED, "", None, "the result is null, because the body is not JSON"),
        (200, b"<html>", "identity", None, "the result is null, because the body is not JSON"),
        (200, b"{}", "gzip", "{}", None),
        (200, b"", "gzip", None, None),
        (200, b" \n", "", None, None),
        (409, PACKED, "gzip", None, f"HTTP 409; {UNASKED}"),
        (409, b'{"detail": "sold out"}', "gzip", None, "sold out"),
        (409, b"", "gzip", None, "HTTP 409"),
        (503, PACKED, "GZIP", None, f"HTTP 503; {UNASKED.replace('gzip', 'GZIP')}"),
        (409, b"\x1b", "br\x07" * 100, None, f"HTTP 409; {UNASKED}".replace("gzip", ("br " * 100)[:40])),
    ],
)
async def test_a_body_that_can_not_be_read_is_named(
    status: int, body: bytes, encoding: str, result: str | None, error: str | None
) -> None:
    answered, record = await called(Answers(status, body, **{"Content-Encoding": encoding}), call(Operation.TRY))
    assert answered.answer is {200: Answer.SUCCEEDED, 409: Answer.REFUSED, 503: Answer.UNANSWERED}[status]
    assert (answered.result, answered.error, record.error) == (result, error, error)


@pytest.mark.parametrize("operation", [Operation.CONFIRM, Operation.CANCEL])
async def test_without_a_result_to_keep_any_body_will_do(operation: Operation) -> None:
    answered, _ = await called(Answers(200, PACKED, **{"Content-Encoding": "gzip"}), call(operation))
    assert (answered.answer, answered.error) == (Answer.SUCCEEDED, None)


@pytest.mark.parametrize("operation", [Operation.CONFIRM, Operation.CANCEL])
async def test_a_long_answer_to_a_confirm_or_cancel_is_done(operation: Operation) -> None:
    answered, _ = await called(Answers(200, b" " * (BODY_MAX + 1)), call(operation))
    assert (answered.answer, answered.error) == (Answer.SUCCEEDED, None)


async def test_headers_are_read_whatever_their_case() -> None:
    transport = Answers(503, b"", **{"RETRY-AFTER": "7", "TCC-Hold-TTL": "12.5"})
    answered, _ = await called(transport)
    assert (answered.retry_after_s, answered.hold_ttl_s) == (7.0, 12.5)


@pytest.mark.parametrize(
    ("deadline", "error"),
    [(1000.0, "nothing was sent: the deadline had passed"), (1000.001, None), (None, None)],
)
async def test_nothing_is_sent_at_the_deadline_or_after(deadline: float | None, error: str | None) -> None:
    transport = Answers()
    answered, _ = await called(transport, call(deadline=deadline))
    assert answered.error == error
    assert len(transport.requests) == (0 if error else 1)


@pytest.mark.parametrize(
    ("timeout_s", "deadline", "error"),
    [
        (0.0123456, None, "no answer within 0.0123 s"),
        (0.01, 2000.0, "no answer within 0.01 s"),
        (30.0, 1000.015625, "no answer within 0.0156 s"),
    ],
)
async def test_a_call_has_the_lesser_of_its_time_limit_and_the_deadline(
    timeout_s: float, deadline: float | None, error: str
) -> None:
    class Silent(Answers):
        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            await asyncio.get_running_loop().create_future()
            raise AssertionError

    answered, _ = await caller_over(Silent()).call(call(deadline=deadline), target(timeout_s))
    assert (answered.answer, answered.error) == (Answer.UNANSWERED, error)


@pytest.mark.parametrize(
    ("raised", "error"),
    [
        (httpx.ConnectError("not reached"), "ConnectError: not reached"),
        (httpx.ReadTimeout("slow"), "no answer within 30 s"),
        (OverflowError("date\nvalue"), "OverflowError: date value"),
    ],
)
async def test_whatever_a_transport_raises_is_unanswered(raised: Exception, error: str) -> None:
    class Fails(Answers):
        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            raise raised

    answered, record = await called(Fails())
    assert (answered.answer, answered.error, record.error, record.http_status) == (
        *(Answer.UNANSWERED, error, error),
        None,
    )


@pytest.mark.parametrize(
    ("calls_max", "timeout_s", "error"),
    [
        (10, 0.01, "nothing was sent: all 2 slots were taken (concurrency_max)"),
        (1, 0.01, "nothing was sent: too many calls were in progress (HOLDFAST_CALLS_MAX)"),
    ],
)
async def test_who_gets_no_slot_in_time_sends_nothing_and_takes_none(
    calls_max: int, timeout_s: float, error: str
) -> None:
    held = min(2, calls_max)
    under_way, release = asyncio.Event(), asyncio.Event()

    class Waits(Answers):
        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            self.requests.append(request)
            if len(self.requests) == held:
                under_way.set()
            await release.wait()
            return httpx.Response(200, stream=Body(b""))

    transport = Waits()
    caller = caller_over(transport, calls_max=calls_max)
    first = [asyncio.create_task(caller.call(call(), target())) for _ in range(held)]
    await under_way.wait()
    for _ in range(3):
        answered, _ = await caller.call(call(), target(timeout_s))
        assert (answered.answer, answered.error) == (Answer.UNANSWERED, error)
    release.set()
    await asyncio.gather(*first)
    answers = await asyncio.gather(*(caller.call(call(), target()) for _ in range(4)))
    assert {answered.answer for answered, _ in answers} == {Answer.SUCCEEDED}
    assert len(transport.requests) == held + 4


async def test_closing_closes_the_transport() -> None:
    transport = Answers()
    await caller_over(transport).close()
    assert transport.closed
