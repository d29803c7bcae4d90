"""The header Idempotency-Key: the same key and body are the same transaction, however often they are sent."""

import asyncio
import json
from typing import Final

import pytest

from tests.harness.coordinator_app import Gate, Json, Service, check_problem, reply

REQUEST: Final[Json] = {
    "name": "place-order",
    "timeout_s": 20,
    "branches": [{"participant": "inventory", "payload": {"sku": "A-1", "quantity": 2}}],
}
PATH: Final = "/v1/transactions"


async def test_the_same_key_and_body_are_one_transaction(service: Service) -> None:
    first, second = [await service.begin(REQUEST, idempotency_key='"order-4711"') for _ in range(2)]
    assert (first.status_code, second.status_code) == (201, 201)
    assert first.json() == second.json()
    assert first.headers["location"] == second.headers["location"]
    assert service.participants.paths() == ["/inventory/try", "/inventory/confirm"]


async def test_thirty_at_once_are_one_transaction(service: Service) -> None:
    gate = Gate()
    service.participants.script("/inventory/try", [gate])
    sending = [asyncio.create_task(service.begin(REQUEST, idempotency_key='"k"')) for _ in range(30)]
    await gate.reached()
    gate.open()
    answers = await asyncio.gather(*sending)
    assert {answer.status_code for answer in answers} == {201}
    assert len({answer.json()["id"] for answer in answers}) == 1
    assert service.participants.paths() == ["/inventory/try", "/inventory/confirm"]
    assert (await service.rows())["transactions"] == 1


async def test_thirty_bodies_at_once_under_one_key_are_one_transaction_and_conflicts(service: Service) -> None:
    requests = [REQUEST | {"reference": f"order-{n}"} for n in range(30)]
    answers = await asyncio.gather(*(service.begin(request, idempotency_key='"k"') for request in requests))
    assert sorted(answer.status_code for answer in answers) == [201] + [409] * 29
    assert (await service.rows())["transactions"] == 1


@pytest.mark.parametrize("other", ["order-4711", '"order-4711"', '  "order-4711"  ', r'"order\-4711"'])
async def test_quoted_and_bare_are_the_same_key(service: Service, other: str) -> None:
    first = await service.begin(REQUEST, idempotency_key='"order-4711"')
    second = await service.begin(REQUEST, idempotency_key=other)
    if "\\-" in other:
        check_problem(second, 400, "malformed")  # RFC 9651: a backslash escapes a quote or a backslash, nothing else
    else:
        assert second.json() == first.json()


@pytest.mark.parametrize(
    "body",
    [
        json.dumps(REQUEST, indent=4),
        json.dumps(dict(reversed(REQUEST.items()))),
        json.dumps(REQUEST).replace("20", "20.0").replace("place", "pl\\u0061ce"),
        json.dumps(REQUEST | {"answer_at": "end", "try_order": "parallel", "reference": None}),
    ],
)
async def test_the_same_body_in_another_spelling_is_the_same(service: Service, body: str) -> None:
    first = await service.begin(REQUEST, idempotency_key='"k"')
    headers = {"Idempotency-Key": '"k"', "Content-Type": "application/json"}
    second = await service.client.post(PATH, content=body, headers=headers)
    assert (second.status_code, second.json()) == (201, first.json())


@pytest.mark.parametrize(
    "change",
    [
        {"name": "other"},
        {"reference": "r"},
        {"timeout_s": 21},
        {"try_order": "sequential"},
        {"answer_at": "record"},
        {"branches": [{"participant": "inventory", "payload": {"sku": "A-1", "quantity": "2"}}]},
        {"branches": [{"participant": "inventory", "name": "b", "payload": {"sku": "A-1", "quantity": 2}}]},
    ],
)
async def test_another_body_under_the_key_conflicts_and_changes_nothing(service: Service, change: Json) -> None:
    first = (await service.begin(REQUEST, idempotency_key='"k"')).json()
    rows, calls = await service.rows(), len(service.participants.received)
    document = check_problem(
        await service.begin(REQUEST | change, idempotency_key='"k"'), 409, "idempotency-key-conflict"
    )
    assert document["transaction_id"] == first["id"]
    assert await service.rows() == rows
    assert len(service.participants.received) == calls
    assert await service.get(first["id"]) == first


async def test_other_keys_and_none_are_other_transactions(service: Service) -> None:
    answers = [await service.begin(REQUEST, idempotency_key=key) for key in ('"a"', '"b"', '"A"')]
    answers += [await service.begin(REQUEST) for _ in range(2)]
    assert len({answer.json()["id"] for answer in answers}) == 5


async def test_a_cancelled_transaction_answers_its_key_as_it_did(service: Service) -> None:
    service.participants.script("/inventory/try", [reply(409, {"detail": "out of stock"}), reply(200)])
    first, second = [await service.begin(REQUEST, idempotency_key='"k"') for _ in range(2)]
    assert check_problem(first, 409, "transaction-cancelled") == check_problem(second, 409, "transaction-cancelled")
    assert service.participants.paths() == ["/inventory/try", "/inventory/cancel"]


@pytest.mark.parametrize(
    "key", ["", '""', '"', '"a', 'a"b', '"a"b"', '"a\\"', "ü", "k" * 256, f'"{"k" * 256}"', "a\tb"]
)
async def test_a_key_that_is_none_is_400_and_nothing_recorded(service: Service, key: str) -> None:
    headers = {"Idempotency-Key": key.encode("latin-1")}
    answer = await service.client.post(PATH, json=REQUEST, headers=headers)  # type: ignore[arg-type]
    assert "Idempotency-Key" in check_problem(answer, 400, "malformed")["detail"]
    assert (await service.rows())["transactions"] == 0
    assert service.participants.received == []


async def test_the_longest_key(service: Service) -> None:
    keys = [f'"{"k" * 255}"', "k" * 255, '"' + '\\"' * 255 + '"']
    assert [(await service.begin(REQUEST, idempotency_key=key)).status_code for key in keys] == [201] * 3
    assert (await service.rows())["transactions"] == 2


async def test_what_is_said_and_what_goes_without_saying_is_the_same_request(service: Service) -> None:
    first = await service.begin(REQUEST, idempotency_key='"k"')
    spelled_out = REQUEST | {"try_order": "parallel", "answer_at": "end", "reference": None}
    assert (await service.begin(spelled_out, idempotency_key='"k"')).json() == first.json()
