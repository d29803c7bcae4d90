"""The client for initiators: begins once however often it asks, and makes a failure hard to overlook."""

import asyncio
import http.server
import json
import logging
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, ClassVar

import httpx
import pytest

import holdfast
from holdfast import (
    AccessDenied,
    Branch,
    Client,
    CoordinatorUnreachable,
    HoldfastError,
    ProblemError,
    TransactionCancelled,
    TransactionMixed,
    TransactionUndecided,
    idempotency_key_of,
)
from holdfast.json_text import loads
from holdfast.wire import Decision

Responder = Callable[[httpx.Request], httpx.Response]
BRANCHES = [Branch(participant="seats", payload={"quantity": 2})]


def transaction(phase: str, decision: str, **members: Any) -> dict[str, Any]:
    return {"id": "t-1", "phase": phase, "decision": decision, "branches": [], "from_the_future": 1} | members


CONFIRMED = transaction("confirmed", "confirm", outcome="confirmed")
CANCELLED = transaction(
    "cancelled", "cancel", reason={"code": "refused", "branch": "seats", "detail": "sold out"}, outcome="cancelled"
)


class Coordinator:
    """Answers from a script; the last answer is given for ever."""

    def __init__(self, *script: Responder | httpx.Response | Exception) -> None:
        self.script = list(script)
        self.requests: list[httpx.Request] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        answer = self.script.pop(0) if len(self.script) > 1 else self.script[0]
        if isinstance(answer, Exception):
            raise answer
        return answer if isinstance(answer, httpx.Response) else answer(request)


class Pauses(list[float]):
    async def __call__(self, seconds: float) -> None:
        self.append(seconds)


@pytest.fixture
async def open_clients() -> AsyncIterator[list[Client]]:
    clients: list[Client] = []
    yield clients
    for client in clients:
        await client.close()


Make = Callable[..., tuple[Client, Coordinator, Pauses]]


@pytest.fixture
def make(open_clients: list[Client]) -> Make:
    def make(*script: Any, **options: Any) -> tuple[Client, Coordinator, Pauses]:
        coordinator, pauses = Coordinator(*script), Pauses()
        client = Client("http://coordinator/", transport=httpx.MockTransport(coordinator), **options)
        client._sleep = pauses
        client._clock = lambda: sum(pauses)
        open_clients.append(client)
        return client, coordinator, pauses

    return make


def answer(status: int, body: Any, **headers: str) -> Responder:
    return lambda request: httpx.Response(status, json=body, headers=headers)


async def test_begin_sends_what_the_contract_asks_for(make: Make) -> None:
    client, coordinator, _ = make(answer(201, CONFIRMED))
    begun = await client.begin(
        "place-order",
        [
            *BRANCHES,
            Branch(name="card", endpoints={"try": "http://a/t", "confirm": "http://a/c", "cancel": "http://a/x"}),
            Branch(name="gift", endpoints={"try": "http://g/t"}, call_timeout_s=20, payload=1),
            {"participant": "shipping", "payload": None},
        ],
        reference="order-4711",
        timeout_s=5,
        try_order="sequential",
        wait_s=12,
        idempotency_key='order "4711"',
    )
    (request,) = coordinator.requests
    assert (request.method, str(request.url)) == ("POST", "http://coordinator/v1/transactions")
    assert request.headers["idempotency-key"] == '"order \\"4711\\""'
    assert request.headers["prefer"] == "wait=12"
    assert json.loads(request.content) == {
        "name": "place-order",
        "reference": "order-4711",
        "timeout_s": 5,
        "try_order": "sequential",
        "answer_at": "end",
        "branches": [
            {"participant": "seats", "payload": {"quantity": 2}},
            {
                "name": "card",
                "endpoints": {"try": "http://a/t", "confirm": "http://a/c", "cancel": "http://a/x"},
                "payload": None,
            },
            {"name": "gift", "endpoints": {"try": "http://g/t"}, "call_timeout_s": 20, "payload": 1},
            {"participant": "shipping", "payload": None},
        ],
    }
    assert (begun.confirmed, begun.finished, begun.cancelled, begun.decision) == (True, True, False, Decision.CONFIRM)
    with pytest.raises(ValueError, match="frozen"):
        begun.phase = "cancelled"  # type: ignore[misc]


async def test_every_repeat_carries_the_same_key(make: Make) -> None:
    client, coordinator, pauses = make(
        httpx.ConnectError("refused"),
        httpx.ReadTimeout("lost"),
        answer(503, {"type": "/problems/overloaded"}, **{"Retry-After": "7"}),
        answer(500, {}),
        answer(201, CONFIRMED),
    )
    assert (await client.begin("n", BRANCHES)).confirmed
    assert len({request.headers["idempotency-key"] for request in coordinator.requests}) == 1
    assert len({request.content for request in coordinator.requests}) == 1
    assert len(pauses) == 4
    assert pauses[2] == 7, "Retry-After is honoured"
    await client.begin("n", BRANCHES)
    assert len({request.headers["idempotency-key"] for request in coordinator.requests}) == 2, (
        "another begin, another key"
    )


async def test_it_keeps_trying_as_long_as_a_takeover_takes_and_no_longer_than_its_deadline(make: Make) -> None:
    client, coordinator, pauses = make(httpx.ConnectError("connection refused"))
    with pytest.raises(CoordinatorUnreachable) as caught:
        await client.get("t-1")
    assert 15 < sum(pauses) < 30, "a lease is 15 s, the deadline 30 s"
    assert all(later <= 3 for later in pauses)
    assert len(coordinator.requests) == caught.value.attempts > 10
    answered_late, _, pauses = make(lambda request: restarted(pauses))
    assert (await answered_late.get("t-1")).confirmed
    assert sum(pauses) > 4.7


def restarted(pauses: Pauses) -> httpx.Response:
    """A coordinator that comes back 4.7 s after the first request."""
    if sum(pauses) < 4.7:
        raise httpx.ConnectError("connection refused")
    return httpx.Response(200, json=CONFIRMED)


async def test_black_holes_are_bounded_by_the_same_deadline(make: Make) -> None:
    """Every attempt costs its whole time limit: what an attempt may take shrinks with what is left."""
    passed: list[float] = []

    def swallow(request: httpx.Request) -> httpx.Response:
        passed.append(request.extensions["timeout"]["read"])
        raise httpx.ReadTimeout("")

    client, _, pauses = make(swallow)
    client._clock = lambda: sum(pauses) + sum(passed)
    with pytest.raises(CoordinatorUnreachable, match=r"ReadTimeout: no answer within \d+\.\d s") as caught:
        await client.begin("n", BRANCHES)
    assert passed[0] == 75, "the wait, a margin, and a time limit of its own"
    assert 85 < sum(passed) + sum(pauses) <= 90
    assert caught.value.attempts == len(passed)


async def test_what_asks_for_more_patience_than_is_left_is_the_end(make: Make) -> None:
    client, coordinator, pauses = make(answer(503, {"detail": "too busy"}, **{"Retry-After": "31"}))
    with pytest.raises(CoordinatorUnreachable, match="HTTP 503: too busy"):
        await client.get("t-1")
    assert (len(coordinator.requests), pauses) == (1, [])


async def test_attempts_can_be_limited_too(make: Make) -> None:
    client, coordinator, _ = make(httpx.ConnectError("connection refused"), attempts_max=2)
    with pytest.raises(CoordinatorUnreachable):
        await client.get("t-1")
    assert len(coordinator.requests) == 2


async def test_an_error_names_the_url_the_attempts_and_the_last_cause(make: Make) -> None:
    client, _, _ = make(httpx.ConnectError("[Errno 111] Connection refused"), attempts_max=3)
    with pytest.raises(CoordinatorUnreachable) as caught:
        await client.get("t-1")
    assert str(caught.value) == (
        "the coordinator did not answer at http://coordinator/v1/transactions/t-1 (3 attempts): "
        "ConnectError: [Errno 111] Connection refused"
    )
    assert isinstance(caught.value.__cause__, httpx.ConnectError)
    assert caught.value.url == "http://coordinator/v1/transactions/t-1"


MIXED = transaction(
    "confirmed",
    "confirm",
    outcome="mixed",
    branches=[{"name": "seats", "phase": "confirmed"}, {"name": "card", "phase": "resolved"}],
)

ENDS: list[tuple[Responder | Exception, type[HoldfastError]]] = [
    (answer(409, {"type": "/problems/transaction-cancelled", "transaction": CANCELLED}), TransactionCancelled),
    (answer(202, transaction("trying", "undecided")), TransactionUndecided),
    (answer(409, {"type": "/problems/transaction-mixed", "transaction": MIXED}), TransactionMixed),
    (answer(422, {"type": "/problems/unknown-participant"}), ProblemError),
    (answer(200, ["t-1"]), CoordinatorUnreachable),
    (httpx.ConnectError("refused"), CoordinatorUnreachable),
]


@pytest.mark.parametrize(("said", "error"), ENDS)
async def test_every_exception_of_begin_carries_the_key(make: Make, said: Any, error: type[HoldfastError]) -> None:
    client, coordinator, _ = make(said)
    with pytest.raises(error) as caught:
        await client.begin("n", BRANCHES)
    assert coordinator.requests[0].headers["idempotency-key"] == f'"{caught.value.idempotency_key}"'
    assert idempotency_key_of(caught.value) == caught.value.idempotency_key
    with pytest.raises(error) as caught:
        await client.begin("n", BRANCHES, idempotency_key="order:4711")
    assert caught.value.idempotency_key == "order:4711"


async def test_a_timeout_around_begin_carries_the_key_too() -> None:
    class Silent(httpx.AsyncBaseTransport):
        keys: ClassVar[list[str]] = []

        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            self.keys.append(request.headers["idempotency-key"])
            await asyncio.Event().wait()
            raise AssertionError

    async def begin() -> None:
        async with Client("http://coordinator", transport=Silent()) as client:
            await client.begin("n", BRANCHES)

    async def under_timeout() -> None:
        async with asyncio.timeout(0.01):
            await begin()

    async def waited_for() -> None:
        await asyncio.wait_for(begin(), 0.01)

    for way in (under_timeout, waited_for):
        with pytest.raises(TimeoutError) as caught:
            await way()
        assert Silent.keys[-1] == f'"{idempotency_key_of(caught.value)}"'
    assert idempotency_key_of(TimeoutError()) is None
    assert idempotency_key_of(None) is None


@pytest.mark.parametrize(
    "response",
    [
        answer(409, {"type": "/problems/transaction-mixed", "status": 409, "transaction": MIXED}),
        answer(409, {"type": "/problems/transaction-cancelled", "status": 409, "transaction": MIXED}),
        answer(201, MIXED),
        answer(201, {**MIXED, "phase": "cancelled", "decision": "cancel"}),
    ],
)
async def test_a_mixed_transaction_is_no_success_and_no_cancellation(make: Make, response: Responder) -> None:
    client, _, _ = make(response)
    with pytest.raises(TransactionMixed, match=r"t-1 is mixed: decided \w+; seats confirmed, card resolved") as caught:
        await client.begin("n", BRANCHES)
    mixed = caught.value.transaction
    assert (mixed.finished, mixed.mixed, mixed.confirmed, mixed.cancelled) == (True, True, False, False)


async def test_get_and_wait_return_what_is_mixed(make: Make) -> None:
    client, _, _ = make(answer(200, MIXED))
    for found in (await client.get("t-1"), await client.wait("t-1")):
        assert (found.finished, found.mixed, found.confirmed) == (True, True, False)


@pytest.mark.parametrize(
    "url",
    [
        *("127.0.0.1:8000", "coordinator", "", "ftp://coordinator", "http://", "http://coordinator:port"),
        *("http://coordinator/v1", "http://coordinator/v1/", "https://c/holdfast/v1", "http://c?key=1", "http://c#a"),
    ],
)
def test_a_url_that_is_no_coordinators_is_refused_at_once(url: str) -> None:
    with pytest.raises(ValueError, match=r"coordinator_url must|[Pp]ort"):
        Client(url)


async def test_one_line_at_the_start_says_where_it_goes(caplog: pytest.LogCaptureFixture) -> None:
    said = httpx.MockTransport(answer(200, CONFIRMED))
    with caplog.at_level(logging.INFO, "holdfast"):
        async with Client("http://user:secret@coordinator/prefix/", transport=said) as client:
            await client.get("t-1")
            await client.get("t-1")
    (record,) = [record for record in caplog.records if record.name == "holdfast"]
    assert record.getMessage() == "event=client_started coordinator=http://coordinator/prefix/v1/ retry_s=30.0"


async def test_a_closed_client_says_so() -> None:
    client = Client("http://coordinator")
    await client.close()
    with pytest.raises(RuntimeError, match="closed"):
        await client.get("t-1")


@pytest.mark.parametrize(
    "response",
    [
        answer(409, {"type": "/problems/transaction-cancelled", "status": 409, "transaction": CANCELLED}),
        answer(201, CANCELLED),
        answer(202, transaction("cancelling", "cancel")),
        answer(409, {"type": "/problems/transaction-cancelled", "transaction": transaction("cancelling", "cancel")}),
    ],
)
async def test_a_cancelled_transaction_is_no_return_value(make: Make, response: Responder) -> None:
    client, coordinator, _ = make(response)
    with pytest.raises(TransactionCancelled) as caught:
        await client.begin("n", BRANCHES)
    assert caught.value.transaction.decision is Decision.CANCEL
    assert len(coordinator.requests) == 1
    if caught.value.transaction.reason:
        assert str(caught.value) == "transaction t-1 is cancelled: refused seats sold out"


async def test_what_is_decided_but_not_finished_is_returned_and_what_is_undecided_is_not(make: Make) -> None:
    client, _, _ = make(
        answer(202, transaction("confirming", "confirm", hung=True)),
        answer(202, transaction("trying", "undecided")),
    )
    begun = await client.begin("n", BRANCHES)
    assert (begun.finished, begun.confirmed, begun.hung) == (False, False, True)
    with pytest.raises(TransactionUndecided) as caught:
        await client.begin("n", BRANCHES)
    assert caught.value.transaction.phase == "trying"
    recorded = await client.begin("n", BRANCHES, answer_at="record")
    assert recorded.decision is Decision.UNDECIDED


async def test_a_problem_is_not_repeated_and_says_everything(make: Make) -> None:
    document = {
        "type": "/problems/unknown-participant",
        "title": "Unknown participant",
        "status": 422,
        "detail": "seats is not registered",
        "participant": "seats",
    }
    client, coordinator, _ = make(answer(422, document))
    with pytest.raises(ProblemError) as caught:
        await client.begin("n", BRANCHES)
    error = caught.value
    assert (error.status, error.slug, error.title) == (422, "unknown-participant", "Unknown participant")
    assert (error.detail, error.members) == ("seats is not registered", {"participant": "seats"})
    assert len(coordinator.requests) == 1


@pytest.mark.parametrize(
    ("response", "error"),
    [
        (httpx.Response(404, text="<html>nothing here</html>"), ProblemError),
        (httpx.Response(404, headers={"Content-Type": "text/html; charset=hex"}, content=b"<html>"), ProblemError),
        (httpx.Response(404, headers={"Content-Type": "text/html; charset=idna"}, content=b"\xff"), ProblemError),
        (httpx.Response(200, text="<html>welcome</html>"), CoordinatorUnreachable),
        (httpx.Response(200, json=["t-1"]), CoordinatorUnreachable),
        (httpx.Response(302, headers={"Location": "http://elsewhere"}), CoordinatorUnreachable),
        (httpx.Response(409, json={"type": "/problems/transaction-cancelled"}), ProblemError),
    ],
)
async def test_what_is_no_coordinator_is_an_error_all_the_same(
    make: Make, response: httpx.Response, error: type[HoldfastError]
) -> None:
    client, _, _ = make(lambda request: response)
    with pytest.raises(error):
        await client.begin("n", BRANCHES)


@pytest.mark.parametrize("status", [401, 403])
async def test_who_is_not_let_in_is_told_at_once(make: Make, status: int) -> None:
    slug = {401: "unauthenticated", 403: "forbidden"}[status]
    problem = {"type": f"/problems/{slug}", "title": "No", "detail": "Send a key."}
    client, coordinator, _ = make(answer(status, problem), httpx.Response(status, text="<html>no</html>"))
    for said in (f"{status} {slug}: Send a key.", f"{status} about:blank: <html>no</html>"):
        with pytest.raises(AccessDenied) as caught:
            await client.get("t-1")
        assert str(caught.value) == said
        assert (caught.value.status, isinstance(caught.value, ProblemError)) == (status, True)
    assert len(coordinator.requests) == 2, "another attempt would change nothing"


async def test_cookies_are_not_kept(make: Make) -> None:
    bad = httpx.Response(200, json=CONFIRMED, headers=[(b"Set-Cookie", b"\xff=1; path=/")])
    client, coordinator, _ = make(lambda request: bad)
    for _ in range(2):
        assert (await client.get("t-1")).confirmed
    assert "cookie" not in coordinator.requests[1].headers


async def test_whatever_a_transport_raises_is_no_answer(make: Make) -> None:
    client, _, _ = make(ValueError("no HTTP error at all"))
    with pytest.raises(CoordinatorUnreachable):
        await client.get("t-1")


async def test_get_and_cancel(make: Make) -> None:
    client, coordinator, _ = make(answer(200, CONFIRMED), answer(200, CANCELLED))
    assert (await client.get("a/b")).id == "t-1"
    assert (await client.cancel("t-1")).cancelled
    assert [(r.method, r.url.raw_path.decode()) for r in coordinator.requests] == [
        ("GET", "/v1/transactions/a%2Fb"),
        ("POST", "/v1/transactions/t-1/cancel"),
    ]


async def test_what_it_reports_has_every_digit(make: Make) -> None:
    texts = ["1234567890123456.78", "1E400", "-0.0", "9007199254740993", "0.123456789012345678901234567890"]
    branch = '{"name": "seats", "phase": "held", "payload": {"amounts": [%s]}, "result": [%s]}' % (
        (", ".join(texts),) * 2
    )
    document = json.dumps({**CONFIRMED, "branches": []}).replace("[]", f"[{branch}]")
    client, _, _ = make(lambda request: httpx.Response(200, content=document))
    (found,) = (await client.get("t-1")).branches
    for numbers in (found.payload["amounts"], found.result):
        assert [Decimal(str(number)) for number in numbers] == [Decimal(text) for text in texts]


async def test_what_it_sends_has_every_digit(make: Make) -> None:
    numbers = '{"amounts":[1234567890123456.78,1E400,9007199254740993],"name":"\\u00e9","at":"2026-11-26T00:00:00Z"}'
    client, coordinator, _ = make(answer(201, CONFIRMED), answer(201, CONFIRMED))
    payload = loads(numbers)
    payload["at"] = datetime(2026, 11, 26, tzinfo=UTC)
    await client.begin("n", [holdfast.Branch(participant="seats", payload=payload)])
    await client.begin("n", [{"participant": "seats", "payload": payload}])
    for request in coordinator.requests:
        assert f'"payload":{numbers}' in request.content.decode()
        assert request.headers["content-type"] == "application/json"


async def test_wait_asks_until_the_end(make: Make) -> None:
    confirming = answer(200, transaction("confirming", "confirm"))
    client, coordinator, pauses = make(confirming, confirming, answer(200, CONFIRMED))
    assert (await client.wait("t-1")).confirmed
    assert [request.headers["prefer"] for request in coordinator.requests] == ["wait=60"] * 3
    assert len(pauses) == 2, "a coordinator that does not wait is not asked without a pause"


async def test_wait_gives_up_in_time_and_says_where_it_stands(make: Make) -> None:
    client, _, _ = make(answer(200, transaction("confirming", "confirm")))
    assert not (await client.wait("t-1", wait_s=0)).finished


async def test_a_key_that_no_header_can_carry_is_refused(make: Make) -> None:
    client, coordinator, _ = make(answer(201, CONFIRMED))
    for key in ("größe", "a\nb"):
        with pytest.raises(ValueError, match="ASCII"):
            await client.begin("n", BRANCHES, idempotency_key=key)
    assert coordinator.requests == []


def test_all_that_the_client_raises_is_one_family() -> None:
    family = (ProblemError, TransactionCancelled, TransactionMixed, TransactionUndecided, CoordinatorUnreachable)
    assert all(issubclass(error, HoldfastError) for error in family)
    assert set(holdfast.__all__) <= set(dir(holdfast))


class Handler(http.server.BaseHTTPRequestHandler):
    """A coordinator that keeps connections open."""

    protocol_version = "HTTP/1.1"
    peers: ClassVar[list[int]] = []

    def do_GET(self) -> None:
        self.peers.append(self.client_address[1])
        body = json.dumps(CONFIRMED).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


SEVERAL_LOOPS = """
import asyncio, gc, sys
from holdfast import Client

client = Client(sys.argv[1], attempts_max=1)

async def twice():
    for _ in range(2):
        assert (await client.get("t-1")).confirmed

for _ in range(3):
    asyncio.run(twice())
    (last,) = client._connections._by_loop.values()  # what belongs to loops that have ended is let go
    assert last.http.is_closed
gc.collect()
"""


def test_one_client_serves_several_event_loops_without_a_failed_attempt() -> None:
    """In a process of its own, whose warnings are all told: no socket is left to the garbage collector."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        command = [sys.executable, "-W", "always", "-c", SEVERAL_LOOPS, f"http://127.0.0.1:{server.server_port}"]
        ran = subprocess.run(command, check=False, capture_output=True, text=True)
        server.shutdown()
        thread.join()
    assert (ran.returncode, ran.stderr) == (0, "")
    assert [Handler.peers.count(peer) for peer in dict.fromkeys(Handler.peers)] == [2, 2, 2], "connections are kept"


class Closing(httpx.MockTransport):
    """A transport that knows whether it was closed."""

    closed = False

    async def aclose(self) -> None:
        self.closed = True


def test_a_transport_of_the_callers_own_serves_the_next_loop_too() -> None:
    transport = Closing(lambda request: httpx.Response(200, json=CONFIRMED))
    client = Client("http://coordinator", transport=transport)
    for _ in range(2):
        assert asyncio.run(client.get("t-1")).confirmed
        assert not transport.closed

    async def used_and_closed() -> None:
        async with client:
            await client.get("t-1")

    asyncio.run(used_and_closed())
    assert transport.closed


def test_a_loop_that_ends_untidily_is_let_go_without_an_error() -> None:
    client = Client("http://127.0.0.1:1", attempts_max=1)
    for _ in range(2):
        loop = asyncio.new_event_loop()
        with pytest.raises(CoordinatorUnreachable):
            loop.run_until_complete(client.get("t-1"))
        loop.close()  # and shuts down no generators
    assert len(client._connections._by_loop) == 1
