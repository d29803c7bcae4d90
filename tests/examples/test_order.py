"""The initiator: one order, one transaction, and an answer that says what was decided."""

import asyncio
import json
from types import ModuleType
from typing import Any

import httpx
import pytest

from holdfast import Client
from tests.examples.examples import Load, running

ORDER = {"order_id": "o-1", "customer": "ada", "sku": "A-1", "quantity": 2, "day": "monday"}
REFUSED = {"code": "refused", "branch": "payment", "detail": "insufficient funds"}


class Coordinator:
    """Answers every begin with the same decision, and remembers what it was asked."""

    def __init__(self, decision: str = "confirm") -> None:
        self.decision = decision
        self.requests: list[httpx.Request] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        if self.decision == "unreachable":
            raise httpx.ConnectError("down", request=request)
        phase = {"confirm": "confirming", "cancel": "cancelled", "undecided": "trying"}[self.decision]
        reason = REFUSED if self.decision == "cancel" else None
        transaction = {"id": "t-1", "phase": phase, "decision": self.decision, "reason": reason}
        if self.decision == "cancel" and request.method == "POST":
            problem = {"type": "/problems/transaction-cancelled", "status": 409, "transaction": transaction}
            return httpx.Response(409, json=problem)
        return httpx.Response(202 if self.decision == "undecided" else 201, json=transaction)

    @property
    def begun(self) -> list[dict[str, Any]]:
        return [json.loads(request.content) for request in self.requests if request.method == "POST"]

    @property
    def keys(self) -> list[str]:
        return [request.headers["Idempotency-Key"] for request in self.requests if request.method == "POST"]


@pytest.fixture
def coordinator() -> Coordinator:
    return Coordinator()


@pytest.fixture
def order(load: Load, coordinator: Coordinator) -> ModuleType:
    module = load("order")
    module.tcc = Client("http://coordinator", transport=httpx.MockTransport(coordinator), attempts_max=1)  # type: ignore[attr-defined]
    return module


@pytest.mark.parametrize(
    ("decision", "status", "said", "reason"),
    [
        ("confirm", 201, "booked", None),
        ("cancel", 409, "refused", "insufficient funds"),
        ("undecided", 202, "open", None),
    ],
)
async def test_the_answer_says_what_was_decided(
    order: ModuleType, coordinator: Coordinator, decision: str, status: int, said: str, reason: str | None
) -> None:
    coordinator.decision = decision
    async with running(order) as client:
        answer = await client.post("/orders", json=ORDER)
        assert answer.status_code == status
        expected = {**ORDER, "amount_cents": 50_00, "status": said, "transaction_id": "t-1", "reason": reason}
        assert answer.json() == expected
        assert (await client.get("/orders/o-1")).json() == expected


async def test_the_transaction_has_three_branches_and_a_key_made_from_the_order(
    order: ModuleType, coordinator: Coordinator
) -> None:
    async with running(order) as client:
        await client.post("/orders", json=ORDER)
    [begun] = coordinator.begun
    assert coordinator.keys == ['"order:o-1"']
    assert (begun["name"], begun["reference"], begun["answer_at"]) == ("place-order", "o-1", "decision")
    assert {branch["participant"]: branch["payload"] for branch in begun["branches"]} == {
        "inventory": {"sku": "A-1", "quantity": 2},
        "payment": {"customer": "ada", "amount_cents": 50_00},
        "shipping": {"day": "monday", "parcels": 2},
    }


async def test_with_the_coordinator_down_the_order_stays_and_may_be_posted_again(
    order: ModuleType, coordinator: Coordinator
) -> None:
    coordinator.decision = "unreachable"
    async with running(order) as client:
        answer = await client.post("/orders", json=ORDER)
        assert (answer.status_code, answer.headers["Retry-After"]) == (503, "5")
        assert (await client.get("/orders/o-1")).json()["status"] == "open"
        coordinator.decision = "confirm"
        assert (await client.post("/orders", json=ORDER)).status_code == 201
        assert (await client.get("/orders/o-1")).json()["status"] == "booked"
    assert len(set(coordinator.keys)) == 1


async def test_an_open_order_finds_out_later(order: ModuleType, coordinator: Coordinator) -> None:
    coordinator.decision = "undecided"
    async with running(order) as client:
        await client.post("/orders", json=ORDER)
        coordinator.decision = "cancel"
        found = (await client.get("/orders/o-1")).json()
    assert (found["status"], found["reason"]) == ("refused", "insufficient funds")


async def test_the_same_order_at_the_same_time_begins_the_same_transaction(
    order: ModuleType, coordinator: Coordinator
) -> None:
    async with running(order) as client:
        answers = await asyncio.gather(*(client.post("/orders", json=ORDER) for _ in range(5)))
    assert [answer.status_code for answer in answers] == [201] * 5
    assert set(coordinator.keys) == {'"order:o-1"'}
    assert all(begun == coordinator.begun[0] for begun in coordinator.begun)


async def test_what_is_no_order_begins_nothing(order: ModuleType, coordinator: Coordinator) -> None:
    async with running(order) as client:
        await client.post("/orders", json=ORDER)
        assert (await client.post("/orders", json={**ORDER, "quantity": 3})).status_code == 409
        assert (await client.post("/orders", json={**ORDER, "order_id": "o-2", "sku": "none"})).status_code == 422
        assert (await client.post("/orders", json={**ORDER, "order_id": "o 3"})).status_code == 422
        assert (await client.get("/orders/o-2")).status_code == 404
    assert len(coordinator.begun) == 1
