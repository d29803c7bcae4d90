"""The record of who did what: one entry for each thing done, in the same commit, and for what was refused."""

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from sqlalchemy import func, select

from app.protocol.messages import Asker
from app.storage import audit, tables
from app.storage.audit import AuditEntry
from tests.harness.coordinator_app import Json, Service, base_url, check_problem, reply, running
from tests.harness.keys import AUTHENTICATED, FIRST, client_of, showing

AUDIT = "/v1/admin/audit"


@pytest.fixture
async def service(sqlite_url: str) -> AsyncIterator[Service]:
    async with running(sqlite_url, **AUTHENTICATED) as service:
        service.client.headers.update(showing(FIRST.text))
        await service.register("inventory")
        yield service


async def entries(service: Service, **query: Any) -> list[Json]:
    items: list[Json] = (await service.json(AUDIT, **query))["items"]
    return items


async def test_the_registry(service: Service) -> None:
    await service.register("inventory", concurrency_max=3)
    assert (await service.client.delete("/v1/participants/inventory")).status_code == 204
    check_problem(await service.client.delete("/v1/participants/inventory"), 404, "participant-not-found")
    found = await entries(service, target="participants/inventory")
    one = {
        "name": "inventory",
        "base_url": base_url("inventory"),
        "call_timeout_s": None,
        "concurrency_max": 64,
        "kinds": None,
    }
    three = one | {"concurrency_max": 3}
    assert [(each["action"], each["before"], each["after"]) for each in found] == [
        ("participant.delete", three, None),
        ("participant.put", one, three),
        ("participant.put", None, one),
    ]
    assert {(each["actor"], each["role"], each["address"], each["outcome"]) for each in found} == {
        ("bootstrap", "admin", "127.0.0.1", "done")
    }


async def test_keys(service: Service) -> None:
    created = (await service.client.post("/v1/admin/keys", json={"name": "ada", "roles": ["viewer"]})).json()
    await service.client.post(f"/v1/admin/keys/{created['id']}/rotate")
    await service.client.delete(f"/v1/admin/keys/{created['id']}")
    found = await entries(service, target=f"keys/{created['id']}")
    assert [each["action"] for each in found] == ["key.revoke", "key.rotate", "key.create"]
    assert found[2]["after"]["roles"] == ["viewer"]
    first = await entries(service, target=f"keys/{FIRST.id}")
    assert [(each["action"], each["actor"]) for each in first] == [("key.create", "settings")]


async def test_commands_on_a_transaction(service: Service) -> None:
    service.participants.script("/inventory/confirm", [reply(503)])
    orders = await client_of(service, "initiator", name="orders")
    ada = await client_of(service, "operator", name="ada")
    request = {"branches": [{"participant": "inventory"}], "answer_at": "decision"}
    id_ = (await orders.post("/v1/transactions", json=request)).json()["id"]
    assert (await ada.post(f"/v1/admin/transactions/{id_}/retry")).status_code == 202
    check_problem(await orders.post(f"/v1/transactions/{id_}/cancel"), 409, "already-decided")
    body = {"as": "cancelled", "reason": "refunded by hand"}
    resolved = await ada.post(f"/v1/admin/transactions/{id_}/branches/inventory/resolve", json=body)
    assert resolved.json()["branches"][0]["resolution"]["by"] == "ada (operator) at 127.0.0.1"
    found = await entries(service, target=f"transactions/{id_}")
    assert [(each["action"], each["actor"], each["role"], each["reason"]) for each in found] == [
        ("branch.resolve", "ada", "operator", "refunded by hand"),
        ("transaction.retry", "ada", "operator", None),
    ]
    assert found[0]["before"]["phase"] == "confirming"
    assert found[0]["after"]["outcome"] == "mixed"
    assert found[0]["after"]["branches"] == [{"name": "inventory", "phase": "resolved", "resolution": "cancelled"}]
    await orders.aclose()
    await ada.aclose()


async def test_an_initiator_s_cancel(service: Service) -> None:
    service.participants.script("/inventory/try", [reply(503)])
    orders = await client_of(service, "initiator", name="orders")
    request = {"branches": [{"participant": "inventory"}]}
    begun = await orders.post("/v1/transactions", json=request, headers={"Prefer": "respond-async"})
    id_ = begun.json()["id"]
    assert (await orders.post(f"/v1/transactions/{id_}/cancel")).status_code == 200
    (found,) = await entries(service, target=f"transactions/{id_}")
    assert (found["action"], found["actor"], found["role"]) == ("transaction.cancel", "orders", "initiator")
    assert (found["before"]["decision"], found["after"]["decision"]) == ("undecided", "cancel")
    await orders.aclose()


async def test_what_fails_leaves_no_entry(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is in the same commit: neither is there without the other."""

    def fail(*_: Any) -> None:
        raise RuntimeError("the disk is full")

    monkeypatch.setattr("app.storage.participants.insert_entries", fail)
    with pytest.raises(RuntimeError, match="the disk is full"):
        await service.client.put("/v1/participants/payment", json={"base_url": base_url("payment")})
    await service.parts.registry.refresh()
    check_problem(await service.client.get("/v1/participants/payment"), 404, "participant-not-found")
    assert await entries(service, target="participants/payment") == []


async def test_refusals_are_recorded_once_a_minute(service: Service) -> None:
    viewer = await client_of(service, "viewer", name="vera")
    service.parts.gate._denials._clock = lambda: 1_800_000_000.0
    for _ in range(3):
        await viewer.delete("/v1/participants/inventory")
        await service.client.get("/v1/admin/keys", headers={"Authorization": "Bearer wrong"})
    await service.parts.later_writes.close()
    found = await entries(service, outcome="denied")
    assert sorted((each["actor"] or "", each["action"], each["target"]) for each in found) == [
        ("", "GET /v1/admin/keys", "/v1/admin/keys"),
        ("vera", "DELETE /v1/participants/{name}", "/v1/participants/inventory"),
    ]
    await viewer.aclose()


async def test_filters_pages_and_export(service: Service) -> None:
    for number in range(7):
        await service.register(f"p-{number}")
    pages, cursor = [], None
    while True:
        page = await service.json(AUDIT, action="participant.put", limit=3, **({"cursor": cursor} if cursor else {}))
        pages += page["items"]
        cursor = page["next_cursor"]
        if cursor is None:
            break
    names = [each["target"] for each in pages]
    assert sorted(names) == ["participants/inventory", *(f"participants/p-{number}" for number in range(7))]
    assert [each["id"] for each in pages] == sorted((each["id"] for each in pages), reverse=True)
    exported = await service.client.get(f"{AUDIT}/export", params={"action": "participant.put"})
    assert exported.headers["content-type"].startswith("application/jsonl")
    assert [json.loads(line) for line in exported.text.splitlines()] == pages
    at = pages[3]["at"]
    since = await entries(service, action="participant.put", **{"from": at})
    until = await entries(service, action="participant.put", to=at)
    assert len(since) + len(until) >= 8
    assert all(each["at"] >= at[:23] for each in since)
    assert await entries(service, actor="nobody") == []
    check_problem(await service.client.get(AUDIT, params={"acter": "x"}), 422, "invalid")


async def test_a_viewer_sees_who_and_what_but_not_what_it_changed(service: Service) -> None:
    viewer = await client_of(service, "viewer")
    items = (await viewer.get(AUDIT)).json()["items"]
    assert {(each["before"], each["after"], each["masked"]) for each in items} == {(None, None, True)}
    await viewer.aclose()


async def test_old_entries_are_deleted(service: Service) -> None:
    def count(connection: Any) -> int:
        found: int = connection.execute(select(func.count()).select_from(tables.audit)).scalar_one()
        return found

    old = AuditEntry(at=1_000.0, asker=Asker(), action="x", target="y")
    await service.parts.journal.write(audit.add_entries, old)
    before = await service.parts.journal.read(count)
    assert await service.parts.journal.write(audit.delete_older, 2_000.0) is False
    assert await service.parts.journal.read(count) == before - 1


async def test_what_was_done_is_in_the_log_too(service: Service, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    await service.register("payment")
    await service.client.delete("/v1/participants/payment")
    created = (await service.client.post("/v1/admin/keys", json={"name": "ada", "roles": ["viewer"]})).json()
    await service.client.post(f"/v1/admin/keys/{created['id']}/rotate")
    await service.client.delete(f"/v1/admin/keys/{created['id']}")
    service.participants.script("/inventory/try", [reply(503)])
    orders = await client_of(service, "initiator", name="orders")
    request = {"branches": [{"participant": "inventory"}]}
    begun = await orders.post("/v1/transactions", json=request, headers={"Prefer": "respond-async"})
    await orders.post(f"/v1/transactions/{begun.json()['id']}/cancel")
    await orders.aclose()
    lines = [record.getMessage() for record in caplog.records if "event=audited" in record.getMessage()]
    actions = [line.partition("action=")[2].split()[0] for line in lines]
    assert actions == [
        *("participant.put", "participant.delete", "key.create", "key.rotate", "key.revoke", "key.create"),
        "transaction.cancel",
    ]
    assert "actor='orders' role=initiator address=127.0.0.1" in lines[-1]


async def test_what_is_cancelled_already_is_not_cancelled_again(service: Service) -> None:
    service.participants.script("/inventory/try", [reply(503)])
    service.participants.script("/inventory/cancel", [reply(503)])
    orders = await client_of(service, "initiator", name="orders")
    request = {"branches": [{"participant": "inventory"}]}
    begun = await orders.post("/v1/transactions", json=request, headers={"Prefer": "respond-async"})
    id_ = begun.json()["id"]
    assert [(await orders.post(f"/v1/transactions/{id_}/cancel")).status_code for _ in range(3)] == [200] * 3
    assert len(await entries(service, target=f"transactions/{id_}")) == 1
    await orders.aclose()
