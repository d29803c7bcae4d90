"""Every fault that a participant's network can have, against the real transport and real sockets.

Whatever its class, it is `unanswered`: only the participant itself can succeed or refuse.
"""

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any, Final

import httpx
import pytest

from app.calling.caller import Caller, Target
from app.calling.transport import Transport
from app.protocol.messages import Answered, Call
from app.protocol.values import Branch, CallRecord
from holdfast.json_text import text_of
from holdfast.wire import Answer, Operation, is_one_line
from tests.harness.fault_server import (
    Action,
    EndlessBody,
    EndlessHead,
    FaultServer,
    NeverAnswers,
    Raw,
    Redirect,
    Reply,
    Reset,
    SlowBody,
    TruncatedBody,
    gzip_bomb,
    huge_headers,
)

RESPONSE_MAX_BYTES: Final = 10_000
TIMEOUT_S: Final = 0.4
CALLS_MAX: Final = 50
LATE_S: Final = 10.0
"""A call may take so long on a busy machine; without the caller's own deadline it would take for ever."""


@pytest.fixture
async def server() -> AsyncIterator[FaultServer]:
    async with FaultServer() as running:
        yield running


@pytest.fixture
async def caller() -> AsyncIterator[Caller]:
    made = Caller(
        Transport(response_max_bytes=RESPONSE_MAX_BYTES),
        coordinator_id="c-1",
        response_max_bytes=RESPONSE_MAX_BYTES,
        calls_max=CALLS_MAX,
        clock=time.time,
    )
    yield made
    await made.close()


def call(operation: Operation = Operation.TRY, *, deadline: float | None = None, payload: Any = None) -> Call:
    return Call(
        transaction_id="01a1fc2e-20e8-7db5-893d-508caa6c9bfb",
        branch=Branch(
            name="inventory", participant="inventory", payload=text_of(payload), result=text_of({"hold_id": "h-1"})
        ),
        operation=operation,
        attempt=1,
        hold_ttl_s=60.0 if operation is Operation.TRY else None,
        deadline=deadline,
    )


def target(url: str, *, timeout_s: float = TIMEOUT_S, slots_of: str = "inventory", concurrency_max: int = 8) -> Target:
    return Target(url=httpx.URL(url), timeout_s=timeout_s, slots_of=slots_of, concurrency_max=concurrency_max)


PATIENT_S: Final = 30.0
"""For faults that are known at once: their calls must not need the time limit."""

FAULTS: Final[dict[str, Action]] = {
    "reset": Reset(),
    "reset in the head": Reset(after=b"HTTP/1.1 200 OK\r\nContent-"),
    "reset in the body": Reset(after=b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{"),
    "closed without an answer": Raw(b""),
    "garbage": Raw(),
    "a status line alone": Raw(b"HTTP/1.1 200 OK\r\n"),
    "no status": Raw(b"HTTP/1.1 OK\r\n\r\n"),
    "a length that is no number": Raw(b"HTTP/1.1 200 OK\r\nContent-Length: five\r\n\r\n12345"),
    "a chunk that is no number": Raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\nabc\r\n0\r\n\r\n"),
    "half a chunked body": Raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n"),
    "truncated": TruncatedBody(),
    **{f"redirect {status}": Redirect("/elsewhere", status) for status in (301, 302, 303, 307, 308)},
    "not modified": Reply(304),
    "multiple choices": Reply(300, {}),
    **{str(status): Reply(status, {"detail": "busy"}) for status in (202, 408, 425, 429, 500, 502, 503, 504, 599)},
}

LONG: Final[dict[str, tuple[Action, Answer]]] = {
    "endless": (EndlessBody(), Answer.SUCCEEDED),
    "endless until close": (EndlessBody(chunked=False), Answer.SUCCEEDED),
    "a byte too long": (Reply(200, b" " * (RESPONSE_MAX_BYTES + 1)), Answer.SUCCEEDED),
    "a refusal": (Reply(409, b"no" + b" " * RESPONSE_MAX_BYTES), Answer.REFUSED),
    "unpacks to too much, and is long": (gzip_bomb(), Answer.SUCCEEDED),
    "no answer": (Reply(503, b" " * (RESPONSE_MAX_BYTES + 1)), Answer.UNANSWERED),
}

SLOW: Final[dict[str, Action]] = {
    "never answers": NeverAnswers(),
    "stops in the head": NeverAnswers(after=b"HTTP/1.1 200 OK\r\nContent-"),
    "stops before the body": NeverAnswers(after=b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n"),
    "stops in the body": NeverAnswers(after=b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{"),
    "informs and never answers": NeverAnswers(after=b"HTTP/1.1 103 Early Hints\r\n\r\n"),
    "slow body": SlowBody(body=b'"' + b"x" * 200 + b'"'),
    "slow head": SlowBody(body=b'"' + b"x" * 200 + b'"', from_head=True),
}


def check_unanswered(answered: Answered, record: CallRecord) -> None:
    assert answered.answer is record.answer is Answer.UNANSWERED
    assert answered.result is None
    assert answered.error
    assert answered.error == record.error
    assert is_one_line(answered.error)
    assert len(answered.error) <= 500
    assert record.duration_ms >= 0


async def check_heals(server: FaultServer, caller: Caller) -> None:
    """After the fault the same caller gets a good answer, and no connection is left behind but idle ones."""
    server.script("/try", [Reply(200, {"hold_id": "h-2"})])
    answered, record = await caller.call(call(), target(server.url("/try"), timeout_s=PATIENT_S))
    assert (answered.answer, answered.result) == (Answer.SUCCEEDED, '{"hold_id": "h-2"}'), record.error
    await server.close_idle()
    await server.wait_until_left()


@pytest.mark.parametrize("operation", [Operation.TRY, Operation.CONFIRM])
@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS.keys())
async def test_a_fault_is_unanswered_at_once(
    server: FaultServer, caller: Caller, fault: Action, operation: Operation
) -> None:
    server.script("/try", [fault])
    async with asyncio.timeout(LATE_S):
        answered, record = await caller.call(call(operation), target(server.url("/try"), timeout_s=PATIENT_S))
    check_unanswered(answered, record)
    assert answered.operation is operation
    assert {request.path for request in server.requests} == {"/try"}, "nobody follows a redirect"
    assert len(server.requests) == 1, "the transport repeats nothing by itself"
    await check_heals(server, caller)


@pytest.mark.parametrize(("response", "answer"), LONG.values(), ids=LONG.keys())
async def test_of_a_long_response_status_and_headers_count(
    server: FaultServer, caller: Caller, response: Action, answer: Answer
) -> None:
    server.script("/try", [response])
    async with asyncio.timeout(LATE_S):
        answered, record = await caller.call(call(), target(server.url("/try"), timeout_s=PATIENT_S))
    assert answered.answer is record.answer is answer
    assert answered.too_long == (answer is Answer.SUCCEEDED)
    assert answered.result is None
    assert answered.error
    await check_heals(server, caller)


@pytest.mark.parametrize("fault", SLOW.values(), ids=SLOW.keys())
async def test_slowness_is_unanswered_in_time(server: FaultServer, caller: Caller, fault: Action) -> None:
    server.script("/try", [fault])
    async with asyncio.timeout(LATE_S):
        answered, record = await caller.call(call(), target(server.url("/try")))
    check_unanswered(answered, record)
    assert answered.error == f"no answer within {TIMEOUT_S} s"
    assert len(server.requests) == 1
    assert record.duration_ms >= TIMEOUT_S * 900
    await check_heals(server, caller)


@pytest.mark.parametrize("fault", [EndlessHead(), huge_headers(4 * 1024 * 1024)])
async def test_a_head_without_end_is_unanswered(server: FaultServer, caller: Caller, fault: Action) -> None:
    server.script("/try", [fault])
    async with asyncio.timeout(LATE_S):
        answered, record = await caller.call(call(), target(server.url("/try"), timeout_s=3.0))
    check_unanswered(answered, record)
    await check_heals(server, caller)


@pytest.mark.parametrize("where", ["refused_url", "untrusted_url", "no_tls_url"])
async def test_no_connection_is_unanswered_at_once(server: FaultServer, caller: Caller, where: str) -> None:
    server.script("/try", [Reply(200, {})])
    async with asyncio.timeout(LATE_S):
        answered, record = await caller.call(call(), target(getattr(server, where)("/try"), timeout_s=PATIENT_S))
    check_unanswered(answered, record)
    assert record.http_status is None
    assert server.requests == []
    await check_heals(server, caller)


@pytest.mark.parametrize("host", ["nowhere.invalid", "[::1]:1", "0.0.0.0:1"])
async def test_a_host_that_is_not_there_is_unanswered(server: FaultServer, caller: Caller, host: str) -> None:
    answered, record = await caller.call(call(), target(f"http://{host}/try", timeout_s=PATIENT_S))
    check_unanswered(answered, record)
    await check_heals(server, caller)


async def test_a_target_that_is_none_is_unanswered(caller: Caller) -> None:
    answered, record = await caller.call(call(), "participant inventory is not registered")
    check_unanswered(answered, record)
    assert answered.error == "participant inventory is not registered"


async def test_a_connection_that_was_kept_alive_and_closed_is_no_trouble(server: FaultServer, caller: Caller) -> None:
    """Closed while idle, it is replaced; closed on the request, that call is unanswered and the next one is not."""
    server.script("/try", [Reply(200, 1), Reply(200, 2), Reply(200, 3, closes=True), Reply(200, 4)])
    wanted = target(server.url("/try"), timeout_s=PATIENT_S)
    assert [(await caller.call(call(), wanted))[0].result for _ in range(2)] == ["1", "2"]
    assert {request.connection for request in server.requests} == {1}, "connections are kept alive"
    await server.close_idle()
    answers = [(await caller.call(call(), wanted))[0] for _ in range(3)]
    assert {answer.answer for answer in answers} <= {Answer.SUCCEEDED, Answer.UNANSWERED}
    results = [str(answer.result) for answer in answers if answer.answer is Answer.SUCCEEDED]
    assert results == sorted(results)
    await check_heals(server, caller)


async def test_cookies_are_never_sent_back(server: FaultServer, caller: Caller) -> None:
    server.script("/try", [Reply(200, {}, headers={"Set-Cookie": "session=1; Path=/"})])
    for _ in range(3):
        await caller.call(call(), target(server.url("/try"), timeout_s=PATIENT_S))
    assert len(server.requests) == 3
    assert not any("cookie" in request.headers for request in server.requests)


async def test_proxies_of_the_environment_are_not_used(server: FaultServer, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, server.refused_url())
    monkeypatch.setenv("NO_PROXY", "")
    monkeypatch.setenv("no_proxy", "")
    caller = Caller(
        Transport(response_max_bytes=RESPONSE_MAX_BYTES),
        coordinator_id="c-1",
        response_max_bytes=RESPONSE_MAX_BYTES,
        calls_max=CALLS_MAX,
        clock=time.time,
    )
    await check_heals(server, caller)
    await caller.close()


@pytest.mark.parametrize("body", [b" " * (RESPONSE_MAX_BYTES - 2) + b"[]", b"[]", b"", b"\x1f\x8b\x08\x00"])
@pytest.mark.parametrize("chunked", [True, False])
async def test_what_fits_is_read(server: FaultServer, caller: Caller, body: bytes, *, chunked: bool) -> None:
    server.script("/try", [Reply(200, body, chunked=chunked)])
    answered, record = await caller.call(call(), target(server.url("/try"), timeout_s=PATIENT_S))
    assert answered.answer is Answer.SUCCEEDED, record.error
    assert answered.result == ("[]" if body.endswith(b"[]") else None)


@pytest.mark.parametrize("status", [200, 204, 226, 400, 404, 409, 410, 422, 499])
async def test_statuses_mean_what_they_say(server: FaultServer, caller: Caller, status: int) -> None:
    body = None if status == 204 else {"detail": "words"}
    server.script("/try", [Reply(status, body, headers={"Tcc-Hold-Ttl": "7", "Retry-After": "3"}, informational=[103])])
    answered, record = await caller.call(call(), target(server.url("/try"), timeout_s=PATIENT_S))
    assert answered.answer is (Answer.SUCCEEDED if status < 300 else Answer.REFUSED), record.error
    assert (answered.hold_ttl_s, answered.retry_after_s) == (7, 3)
    assert record.http_status == status
    assert answered.error == (None if status < 300 else "words")


async def test_a_request_is_sent_as_it_was_meant(server: FaultServer, caller: Caller) -> None:
    server.script("/try?a=b%20c&d=/", [Reply(200, {})])
    payload = {"sku": "é 😀 \0", "n": 10**30}
    await caller.call(call(payload=payload), target(server.url("/try?a=b%20c&d=/"), timeout_s=PATIENT_S))
    (request,) = server.requests
    assert request.method == "POST"
    assert request.json() == {
        "transaction_id": "01a1fc2e-20e8-7db5-893d-508caa6c9bfb",
        "branch": "inventory",
        "kind": "tcc",
        "operation": "try",
        "attempt": 1,
        "hold_ttl_s": 60.0,
        "payload": payload,
        "result": None,
        "coordinator_id": "c-1",
    }
    assert request.headers["content-length"] == str(len(request.body))
    assert request.headers["content-type"] == "application/json"
    assert request.headers["idempotency-key"] == '"01a1fc2e-20e8-7db5-893d-508caa6c9bfb:inventory:try"'
    assert "gzip" not in request.headers.get("accept-encoding", "")
    assert "referer" not in request.headers


async def test_a_try_is_given_up_at_the_deadline(server: FaultServer, caller: Caller) -> None:
    server.script("/try", [NeverAnswers()])
    async with asyncio.timeout(LATE_S):
        late = call(deadline=time.time() + 0.2)
        answered, record = await caller.call(late, target(server.url("/try"), timeout_s=PATIENT_S))
        check_unanswered(answered, record)
        over = call(deadline=time.time() - 5)
        answered, record = await caller.call(over, target(server.url("/try"), timeout_s=PATIENT_S))
        check_unanswered(answered, record)
        assert answered.error == "nothing was sent: the deadline had passed"
    assert len(server.requests) == 1
    await server.wait_until_left()


async def test_a_slow_participant_takes_no_slots_of_another(server: FaultServer, caller: Caller) -> None:
    server.script("/slow", [NeverAnswers()])
    server.script("/try", [Reply(200, {})])
    slow = target(server.url("/slow"), timeout_s=PATIENT_S, slots_of="slow", concurrency_max=3)
    waiting = [asyncio.create_task(caller.call(call(), slow)) for _ in range(3)]
    await server.wait_for_requests(3, "/slow")
    answered, record = await caller.call(call(), target(server.url("/try"), timeout_s=PATIENT_S))
    assert answered.answer is Answer.SUCCEEDED, record.error
    impatient = target(server.url("/slow"), timeout_s=0.05, slots_of="slow", concurrency_max=3)
    answered, record = await caller.call(call(), impatient)
    check_unanswered(answered, record)
    assert answered.error == "nothing was sent: all 3 slots were taken (concurrency_max)"
    assert len(server.received("/slow")) == 3
    await cancelled(waiting)


async def test_there_is_a_limit_for_all_participants_together(server: FaultServer, caller: Caller) -> None:
    server.script("/slow", [NeverAnswers()])
    many = [
        target(server.url("/slow"), timeout_s=PATIENT_S, slots_of=f"slow {n}", concurrency_max=10)
        for n in range(CALLS_MAX + 10)
    ]
    waiting = [asyncio.create_task(caller.call(call(), slow)) for slow in many]
    await server.wait_for_requests(CALLS_MAX, "/slow")
    answered, record = await caller.call(call(), target(server.url("/try"), timeout_s=0.05))
    check_unanswered(answered, record)
    assert answered.error == "nothing was sent: too many calls were in progress (HOLDFAST_CALLS_MAX)"
    assert len(server.received("/slow")) == CALLS_MAX
    assert server.received("/try") == []
    await cancelled(waiting)
    await check_heals(server, caller)


async def cancelled(tasks: list[asyncio.Task[Any]]) -> None:
    for task in tasks:
        task.cancel()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(isinstance(result, asyncio.CancelledError) for result in results)


@pytest.mark.parametrize("how", ["cancelled", "timed out", "broken"])
async def test_every_end_of_a_call_gives_its_slot_back(server: FaultServer, caller: Caller, how: str) -> None:
    server.script("/one", [{"broken": Reset()}.get(how, NeverAnswers())] * 5 + [Reply(200, {})])
    one = target(
        server.url("/one"), timeout_s=0.1 if how == "timed out" else PATIENT_S, slots_of="one", concurrency_max=1
    )
    for n in range(5):
        calling = asyncio.create_task(caller.call(call(), one))
        await server.wait_for_requests(n + 1)
        if how == "cancelled":
            waiting = asyncio.create_task(caller.call(call(), one))
            await asyncio.sleep(0)
            await cancelled([waiting, calling])
        else:
            check_unanswered(*await calling)
    patient = target(server.url("/one"), timeout_s=PATIENT_S, slots_of="one", concurrency_max=1)
    answered, record = await caller.call(call(), patient)
    assert answered.answer is Answer.SUCCEEDED, record.error


async def test_at_most_so_many_calls_are_under_way(server: FaultServer, caller: Caller) -> None:
    under_way, most = 0, 0

    class Counting:
        async def play(self, peer: Any) -> bool:
            nonlocal under_way, most
            under_way += 1
            most = max(most, under_way)
            await asyncio.sleep(0)
            under_way -= 1
            return await Reply(200, {}).play(peer)

    server.script("/try", [Counting()])
    wanted = target(server.url("/try"), timeout_s=PATIENT_S, concurrency_max=4)
    answers = await asyncio.gather(*(caller.call(call(), wanted) for _ in range(40)))
    assert {answered.answer for answered, _ in answers} == {Answer.SUCCEEDED}
    assert most <= 4
    assert server.connections_open <= 4


async def test_a_call_that_is_cancelled_lets_go_of_its_connection(server: FaultServer, caller: Caller) -> None:
    server.script("/try", [NeverAnswers()])
    wanted = target(server.url("/try"), timeout_s=1.0)
    calls = [asyncio.create_task(caller.call(call(), wanted)) for _ in range(5)]
    await server.wait_for_requests(5)
    await cancelled(calls)
    await server.wait_until_left()
    assert server.connections_open == 0


async def test_closing_lets_go_of_every_connection(server: FaultServer) -> None:
    caller = Caller(
        Transport(response_max_bytes=RESPONSE_MAX_BYTES),
        coordinator_id="c-1",
        response_max_bytes=RESPONSE_MAX_BYTES,
        calls_max=CALLS_MAX,
        clock=time.time,
    )
    server.script("/try", [Reply(200, {})])
    await asyncio.gather(*(caller.call(call(), target(server.url("/try"), timeout_s=PATIENT_S)) for _ in range(5)))
    assert server.connections_open > 0
    await caller.close()
    del caller
    await server.wait_until_left()
    assert server.connections_open == 0
