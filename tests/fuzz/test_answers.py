"""What participants and the coordinator answer, damaged: before the transport, and before those who read it."""

import asyncio
import contextlib
import math
from collections.abc import Sequence
from typing import Any, Final

import httpx
from hypothesis import example, given, settings
from hypothesis import strategies as st

from app.calling.caller import RESPONSE_CHARS_KEPT, Caller, Target
from app.calling.transport import HEAD_BYTES_MAX, _Connection
from app.protocol.messages import Call
from app.protocol.values import Branch
from holdfast.client import Client, HoldfastError, Transaction
from holdfast.json_text import NULL, checked, parsed
from holdfast.participant import inquiry
from holdfast.participant.inquiry import Question, Verdict
from holdfast.wire import DETAIL_CHARS_MAX, Answer, Operation, answer_of, is_one_line
from tests.fuzz.mutations import damaged, in_pieces
from tests.harness.budget import TIMES

BODY_BYTES_MAX: Final = 300
RESPONSES: Final = [
    b'HTTP/1.1 200 OK\r\nContent-Length: 13\r\n\r\n{"hold_id": 1}'[:-1],
    b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n6;x=y\r\n{"a": \r\n2\r\n1}\r\n0\r\nTcc-Hold-Ttl: 1\r\n\r\n',
    b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </>\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n",
    b'HTTP/1.0 409 Conflict\r\nContent-Type: application/problem+json\r\n\r\n{"detail": "sold out"}',
    b"HTTP/1.1 503 Busy\r\nRetry-After: 3\r\nDate: Sat, 21 Nov 2026 12:00:00 GMT\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.1 429 Slow\r\nRetry-After: Sat, 21 Nov 2026 12:00:07 GMT\r\nDate: Sat, 21 Nov 2026 12:00:00 GMT\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nTcc-Hold-Ttl: 2.5\r\nConnection: keep-alive\r\nContent-Length: 2\r\n\r\n{}HTTP/1.1 200 OK\r\n",
    b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\nPRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 4\r\n\r\n\x1f\x8b\x08\0",
]
cuts = st.lists(st.integers(0, 1000), max_size=6)


class Wire:
    """What a connection writes to; remembers whether it was closed."""

    closed = False

    def write(self, data: bytes) -> None:
        assert not self.closed

    def is_closing(self) -> bool:
        return self.closed

    def get_write_buffer_size(self) -> int:
        return 0

    def close(self) -> None:
        self.closed = True

    abort = close


async def received(pieces: Sequence[bytes], *, ends: bool = True) -> tuple[int, list[tuple[bytes, bytes]], bytes] | str:
    """What becomes of an exchange that is answered so: status, headers and body, or why it has none."""
    connection, wire = _Connection(BODY_BYTES_MAX), Wire()
    connection.connection_made(wire)  # type: ignore[arg-type]
    answered = connection.exchange(b"POST / HTTP/1.1\r\n\r\n")
    for piece in pieces:
        if wire.closed:
            break
        connection.data_received(piece)
        assert len(connection._body) <= BODY_BYTES_MAX + len(piece)
        assert sum(len(name) + len(value) for name, value in connection._headers) <= HEAD_BYTES_MAX + len(piece)
    if answered.done() and answered.exception() is None and not wire.closed:
        assert connection.reusable
    if ends or wire.closed:
        connection.connection_lost(None)
        assert answered.done(), "whoever waits is told"
        assert wire.closed
        assert not connection.reusable
    if not answered.done():
        return "nothing yet"
    error = answered.exception()
    if error is not None:
        assert isinstance(error, httpx.TransportError)
        return "none"
    response = answered.result()
    body = await response.aread() if "content-encoding" not in response.headers else b"packed"
    assert len(body) <= BODY_BYTES_MAX
    return response.status_code, response.headers.raw, body


@given(damaged(RESPONSES), cuts)
@example(b"HTTP/1.1 200 OK\r\nContent-Length: 301\r\n\r\n" + b"x" * 301, [100, 200])
@example(b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 301, [])
@example(RESPONSES[1] + b"0" * 70_000, [])
@example(b"HTTP/1.1 103 E\r\n\r\n" * 5000 + RESPONSES[0], [30_000, 60_000])
def test_an_answer_is_the_same_however_its_bytes_arrive(data: bytes, at: list[int]) -> None:
    async def both() -> None:
        whole, pieces = await received([data]), await received(in_pieces(data, at))
        single = await received([data[n : n + 1] for n in range(len(data))]) if len(data) < 1000 else whole
        assert whole == pieces == single

    asyncio.run(both())


NAMES: Final = [
    b"retry-after",
    b"tcc-hold-ttl",
    b"date",
    b"content-type",
    b"content-encoding",
    b"location",
    b"set-cookie",
]
VALUES: Final = [
    *(b"3", b"2.5", b"Sat, 21 Nov 2026 12:00:00 GMT", b"Sat, 21 Nov 2026 12:00:00 +0200", b"gzip", b"application/json"),
    *(b"text/html; charset=hex", b"http://[::1]/", b"a=b; expires=Sat, 21-Nov-2026 12:00:00 GMT; path=/"),
]
header = st.tuples(st.sampled_from(NAMES), damaged(VALUES))
bodies = damaged(
    [
        b"",
        b'{"detail": "sold out", "type": "/problems/refused"}',
        b'{"type": "/problems/unknown-transaction", "status": 404}',
        b'{"decision": "undecided", "recheck_in_s": 7}',
        b'{"decision": "confirm", "recheck_in_s": 0.0}',
        b'{"decision": "cancel", "recheck_in_s": 0, "finished": false, "coordinator_id": "production"}',
        b'{"type": "/problems/unknown-transaction", "status": 404, "coordinator_id": "staging"}',
        b'{"id": "t", "phase": "confirmed", "decision": "confirm", "branches": [{"name": "b", "phase": "confirmed"}]}',
        b'{"type": "/problems/transaction-cancelled", "transaction": {"id": "t", "phase": "cancelled", '
        b'"decision": "cancel", "created_at": "2026-11-21T12:00:00Z", "reason": {"code": "refused"}}}',
    ]
)
statuses = st.sampled_from([200, 201, 202, 204, 302, 304, 400, 404, 408, 409, 425, 429, 500, 503, 599, 999])


class Answers(httpx.AsyncBaseTransport):
    """Answers everything so."""

    def __init__(self, status: int, headers: list[tuple[bytes, bytes]], body: bytes) -> None:
        self.answer: tuple[int, Any, bytes] = status, headers, body

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        status, headers, body = self.answer
        return httpx.Response(status, headers=headers, stream=Streamed(body), request=request)


class Streamed(httpx.AsyncByteStream):
    def __init__(self, body: bytes) -> None:
        self.body = body

    async def __aiter__(self) -> Any:
        yield self.body


answers = st.tuples(statuses, st.lists(header, max_size=4), bodies)


@settings(max_examples=60 * TIMES)
@given(answers, st.sampled_from(Operation))
@example((503, [(b"retry-after", b"1e999"), (b"tcc-hold-ttl", b"-inf")], b"\0"), Operation.TRY)
def test_a_participants_answer(answer: tuple[int, Any, bytes], operation: Operation) -> None:
    status, _, body = answer
    caller = Caller(
        Answers(*answer), coordinator_id="c-1", response_max_bytes=BODY_BYTES_MAX, calls_max=9, clock=lambda: 1e9
    )
    target = Target(url=httpx.URL("http://127.0.0.1/"), timeout_s=9, slots_of="one", concurrency_max=1)
    call = Call(
        transaction_id="01a1fc2e-20e8-7db5-893d-508caa6c9bfb",
        branch=Branch(name="b", participant="p", endpoints=None, payload=NULL),
        operation=operation,
        attempt=1,
    )  # fmt: skip
    answered, record = asyncio.run(caller.call(call, target))
    is_cut = len(body) > BODY_BYTES_MAX
    assert answered.answer is answer_of(status), "status and headers count, however long the body is"
    assert answered.too_long is (is_cut and answered.answer is Answer.SUCCEEDED)
    assert answered.result is None or checked(answered.result.encode()) == answered.result
    for seconds in (answered.retry_after_s, answered.hold_ttl_s):
        assert seconds is None or (math.isfinite(seconds) and seconds >= 0)
    has_lost_its_result = operation in (Operation.TRY, Operation.ACTION) and answered.result is None and body.strip()
    assert (answered.error is None) == (answered.answer is Answer.SUCCEEDED and not has_lost_its_result)
    assert len(answered.error or "") <= DETAIL_CHARS_MAX + len("HTTP 999 ")
    assert is_one_line(answered.error or "")
    assert len(record.response or "") <= RESPONSE_CHARS_KEPT
    assert "\0" not in (record.response or "")


QUESTION: Final = Question("t-1", "seats", "production")


@settings(max_examples=60 * TIMES)
@given(answers)
def test_the_coordinators_answer_to_an_inquiry(answer: tuple[int, Any, bytes]) -> None:
    status, _, body = answer
    answered = asyncio.run(inquiry.ask(Answers(*answer), "http://coordinator", QUESTION, timeout_s=9))
    said = parsed(body)
    if isinstance(said, dict) and said.get("coordinator_id") not in (None, QUESTION.coordinator_id):
        assert answered.verdict is Verdict.UNREACHABLE
    assert answered.verdict is not Verdict.CONFIRM or (status == 200 and b"confirm" in body)
    assert answered.verdict is not Verdict.CANCEL or (status == 200 and b"cancel" in body) or status == 404
    assert math.isfinite(answered.recheck_in_s)
    assert 0 <= answered.recheck_in_s <= inquiry.RECHECK_MAX_S


INITIATOR_SEES: Final = Answers(200, [], b"")
INITIATOR: Final = Client("http://coordinator", transport=INITIATOR_SEES, attempts_max=1)


@settings(max_examples=60 * TIMES)
@given(answers)
def test_the_coordinators_answer_to_an_initiator(answer: tuple[int, Any, bytes]) -> None:
    async def ask() -> None:
        INITIATOR_SEES.answer = answer
        for request in (INITIATOR.begin("n", [{"participant": "p"}]), INITIATOR.get("t-1"), INITIATOR.cancel("t-1")):
            with contextlib.suppress(HoldfastError):
                assert isinstance(await request, Transaction)

    asyncio.run(ask())
