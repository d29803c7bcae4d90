"""Whose a transaction is: initiators see, repeat and command their own, and nobody learns of another's key."""

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass

import httpx
import pytest

from app.engine.run import Place
from tests.harness.coordinator_app import Gate, Json, Service, base_url, check_problem, endpoints, reply, running, until
from tests.harness.keys import AUTHENTICATED, FIRST, client_of, showing

BEGIN = {"branches": [{"participant": "inventory", "payload": {"secret": "payload"}}]}


@dataclass(frozen=True)
class World:
    service: Service
    orders: httpx.AsyncClient
    orders_too: httpx.AsyncClient
    billing: httpx.AsyncClient
    viewer: httpx.AsyncClient
    operator: httpx.AsyncClient


@pytest.fixture
async def world(sqlite_url: str) -> AsyncIterator[World]:
    async with running(sqlite_url, **AUTHENTICATED, inflight_max=10) as service:
        for name in ("inventory", "payment"):
            answer = await service.client.put(
                f"/v1/participants/{name}", json={"base_url": base_url(name)}, headers=showing(FIRST.text)
            )
            assert answer.status_code == 201
        clients = [
            await client_of(service, "initiator", name="orders-1", owner="orders"),
            await client_of(service, "initiator", name="orders-2", owner="orders"),
            await client_of(service, "initiator", name="billing"),
            await client_of(service, "viewer"),
            await client_of(service, "operator"),
        ]
        yield World(service, *clients)
        for client in clients:
            await client.aclose()


async def begun(client: httpx.AsyncClient, **headers: str) -> Json:
    answer = await client.post("/v1/transactions", json=BEGIN, headers=headers)
    assert answer.status_code == 201, answer.text
    body: Json = answer.json()
    return body


READS: list[Callable[[httpx.AsyncClient, str], Awaitable[httpx.Response]]] = [
    lambda client, id_: client.get(f"/v1/transactions/{id_}"),
    lambda client, id_: client.get(f"/v1/transactions/{id_}", headers={"Prefer": "wait=5"}),
    lambda client, id_: client.get(f"/v1/transactions/{id_}/calls"),
]


@pytest.mark.parametrize("read", READS)
async def test_only_its_owner_and_those_who_see_everything_read_it(
    world: World, read: Callable[[httpx.AsyncClient, str], Awaitable[httpx.Response]]
) -> None:
    id_ = (await begun(world.orders))["id"]
    for client in (world.orders, world.orders_too, world.viewer, world.operator):
        assert (await read(client, id_)).status_code == 200
    check_problem(await read(world.billing, id_), 403, "forbidden")


async def test_a_foreign_transaction_that_goes_on_is_refused_without_a_wait(world: World) -> None:
    gate = Gate()
    world.service.participants.script("/inventory/try", [gate])
    answer = await world.orders.post("/v1/transactions", json=BEGIN, headers={"Prefer": "respond-async"})
    id_ = answer.json()["id"]
    check_problem(await world.billing.get(f"/v1/transactions/{id_}", headers={"Prefer": "wait=3600"}), 403, "forbidden")
    check_problem(await world.billing.post(f"/v1/transactions/{id_}/cancel"), 403, "forbidden")
    assert (await world.orders_too.post(f"/v1/transactions/{id_}/cancel")).status_code == 200
    gate.open()


async def test_an_initiator_lists_its_own(world: World) -> None:
    mine = [(await begun(client))["id"] for client in (world.orders, world.orders_too)]
    other = (await begun(world.billing))["id"]
    listed = {
        name: [item["id"] for item in (await client.get("/v1/transactions")).json()["items"]]
        for name, client in (("orders", world.orders), ("billing", world.billing), ("viewer", world.viewer))
    }
    assert listed == {"orders": mine[::-1], "billing": [other], "viewer": [other, *mine[::-1]]}


async def test_an_idempotency_key_is_its_owner_s(world: World) -> None:
    first = await begun(world.orders, **{"Idempotency-Key": '"k-1"'})
    assert (await begun(world.orders_too, **{"Idempotency-Key": '"k-1"'}))["id"] == first["id"]
    same = await world.billing.post("/v1/transactions", json=BEGIN, headers={"Idempotency-Key": '"k-1"'})
    another = {"branches": [{"participant": "payment"}]}
    different = await world.billing.post("/v1/transactions", json=another, headers={"Idempotency-Key": '"k-1"'})
    mine = await world.orders.post("/v1/transactions", json=another, headers={"Idempotency-Key": '"k-1"'})
    for answer in (same, different):
        body = check_problem(answer, 409, "idempotency-key-conflict")
        assert first["id"] not in answer.text
        assert "transaction_id" not in body
    assert check_problem(mine, 409, "idempotency-key-conflict")["transaction_id"] == first["id"]


async def test_what_was_begun_without_a_key_belongs_to_everybody(sqlite_url: str) -> None:
    async with running(sqlite_url) as service:
        await service.register("inventory")
        before = (await service.begin(BEGIN, **{"Idempotency-Key": '"k-1"'})).json()
    async with running(sqlite_url, **AUTHENTICATED) as service:
        billing = await client_of(service, "initiator")
        assert (await begun(billing, **{"Idempotency-Key": '"k-1"'}))["id"] == before["id"]
        assert (await billing.get(f"/v1/transactions/{before['id']}")).json()["owner"] is None
        await billing.aclose()


async def test_a_viewer_sees_no_payload_result_response_or_error_text(world: World) -> None:
    world.service.participants.script("/inventory/try", [reply(409, {"detail": "secret refusal"})])
    refused = await world.orders.post("/v1/transactions", json=BEGIN)
    world.service.participants.script("/inventory/try", [reply(200, {"secret": "result"})])
    confirmed = await begun(world.orders)
    paths = [
        *(f"/v1/transactions/{id_}" for id_ in (refused.json()["transaction"]["id"], confirmed["id"])),
        *(f"/v1/transactions/{id_}/calls" for id_ in (refused.json()["transaction"]["id"], confirmed["id"])),
        "/v1/transactions",
    ]
    for path in paths:
        seen, shown = (await world.viewer.get(path)).text, (await world.operator.get(path)).text
        assert "secret" not in seen
        assert '"masked":true' in seen
        assert '"masked":false' in shown
    everything = "".join([(await world.operator.get(path)).text for path in paths])
    assert all(text in everything for text in ("secret refusal", '"result"', '"payload"'))


async def test_a_key_may_be_limited_to_participants_and_to_no_endpoints(world: World) -> None:
    limited = await client_of(world.service, "initiator", name="limited", participants=["inventory"])
    free = await client_of(world.service, "initiator", name="free", endpoints=True)
    inline = {"branches": [{"name": "card", "endpoints": endpoints("card")}]}
    assert (await limited.post("/v1/transactions", json=BEGIN)).status_code == 201
    refused = await limited.post(
        "/v1/transactions", json={"branches": [*BEGIN["branches"], {"participant": "payment"}]}
    )
    assert "payment" in check_problem(refused, 403, "forbidden")["detail"]
    assert "card" in check_problem(await limited.post("/v1/transactions", json=inline), 403, "forbidden")["detail"]
    assert (await free.post("/v1/transactions", json=inline)).status_code == 201
    assert len((await world.viewer.get("/v1/transactions")).json()["items"]) == 2
    await limited.aclose()
    await free.aclose()


async def test_a_participant_asks_about_its_own_branches(world: World) -> None:
    id_ = (await begun(world.orders))["id"]
    mine = await client_of(world.service, "participant", name="p-1", participant="inventory")
    other = await client_of(world.service, "participant", name="p-2", participant="payment")
    path = f"/v1/transactions/{id_}/decision"
    assert (await mine.get(path, params={"branch": "inventory"})).json()["decision"] == "confirm"
    assert (await mine.get(path, params={"branch": "never"})).json()["decision"] == "cancel"
    check_problem(await other.get(path, params={"branch": "inventory"}), 403, "forbidden")
    unknown = "0199b2c4-5e11-7c3a-9f60-2b8d1e47a905"
    check_problem(await mine.get(f"/v1/transactions/{unknown}/decision"), 404, "unknown-transaction")
    await mine.aclose()
    await other.aclose()


async def test_one_owner_takes_no_more_than_four_fifths_of_the_places(world: World) -> None:
    gate = Gate()
    world.service.participants.script("/inventory/try", [gate])
    body, later = BEGIN, {"Prefer": "respond-async"}
    statuses = [(await world.orders.post("/v1/transactions", json=body, headers=later)).status_code for _ in range(10)]
    assert statuses == [202] * 8 + [503] * 2
    others = [(await world.billing.post("/v1/transactions", json=body, headers=later)).status_code for _ in range(3)]
    assert others == [202, 202, 503]
    gate.open()

    async def is_idle() -> bool:
        return not world.service.parts.coordinator.runs.context.places[Place.BEGUN]

    await until(is_idle)
    assert world.service.parts.coordinator.runs.context.owners == {}
    assert (await world.orders.post("/v1/transactions", json=body)).status_code == 201
