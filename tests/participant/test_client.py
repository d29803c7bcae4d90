"""The client for initiators: begins once however often it asks, and makes a failure hard to overlook."""

import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import pytest

import holdfast
from holdfast import (
    Branch,
    Client,
    CoordinatorUnreachable,
    HoldfastError,
    ProblemError,
    TransactionCancelled,
    TransactionUndecided,
)
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
    def make(*script: Any) -> tuple[Client, Coordinator, Pauses]:
        coordinator, pauses = Coordinator(*script), Pauses()
        client = Client("http://coordinator/", transport=httpx.MockTransport(coordinator))
        client._sleep = pauses
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
            {"participant": "shipping", "payload": None},
        ],
    }
    assert (begun.confirmed, begun.finished, begun.cancelled, begun.decision) == (True, True, False, Decision.CONFIRM)
    with pytest.raises(ValueError, match="frozen"):
        begun.phase = "cancelled"


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


async def test_when_nobody_answers_the_key_is_handed_out(make: Make) -> None:
    client, coordinator, _ = make(httpx.ConnectError("refused"))
    with pytest.raises(CoordinatorUnreachable) as caught:
        await client.begin("n", BRANCHES)
    assert coordinator.requests[0].headers["idempotency-key"] == f'"{caught.value.idempotency_key}"'
    assert len(coordinator.requests) == 5


@pytest.mark.parametrize(
    "response",
    [
        answer(409, {"type": "/problems/transaction-cancelled", "status": 409, "transaction": CANCELLED}),
        answer(201, CANCELLED),
        answer(202, transaction("cancelling", "cancel")),
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


async def test_wait_asks_until_the_end(make: Make) -> None:
    confirming = answer(200, transaction("confirming", "confirm"))
    client, coordinator, pauses = make(confirming, confirming, answer(200, CONFIRMED))
    assert (await client.wait("t-1")).confirmed
    assert [request.headers["prefer"] for request in coordinator.requests] == ["wait=30"] * 3
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
    family = (ProblemError, TransactionCancelled, TransactionUndecided, CoordinatorUnreachable)
    assert all(issubclass(error, HoldfastError) for error in family)
    assert set(holdfast.__all__) <= set(dir(holdfast))
