"""A record's end, as clients see it: gone after its retention, exported before, kept when a person resolved it."""

import json
from pathlib import Path

from app.clock import MachineClock
from tests.harness.coordinator_app import Service, check_problem, reply, running, until

REQUEST = {"branches": [{"participant": "inventory"}]}


async def is_gone(service: Service, transaction_id: str) -> bool:
    return (await service.client.get(f"/v1/transactions/{transaction_id}")).status_code == 404


async def test_a_finished_transaction_is_exported_and_purged_when_its_time_has_passed(
    sqlite_url: str, tmp_path: Path
) -> None:
    exports = tmp_path / "exports"
    exports.mkdir()
    async with running(sqlite_url, export_directory=exports) as service:
        await service.register("inventory")
        begun = (await service.begin(REQUEST, idempotency_key="k")).json()
        calls = (await service.json(f"/v1/transactions/{begun['id']}/calls"))["items"]
        assert begun["phase"] == "confirmed"
    today = MachineClock()
    async with running(sqlite_url, export_directory=exports, clock=lambda: today() + 31 * 86_400.0) as service:
        await until(lambda: is_gone(service, begun["id"]))
        for path in ("", "/calls", "/decision"):
            answer = await service.client.get(f"/v1/transactions/{begun['id']}{path}")
            check_problem(answer, 404, "unknown-transaction")
        assert set((await service.rows()).values()) == {0}
        assert "holdfast_transactions_purged_total 1.0" in (await service.client.get("/metrics")).text
        again = (await service.begin(REQUEST, idempotency_key="k")).json()
        assert again["id"] != begun["id"], "a key lives as long as its record"
    assert exported(exports) == [begun | {"calls": calls}]


def exported(directory: Path) -> list[object]:
    return [json.loads(line) for path in directory.iterdir() for line in path.read_text().splitlines()]


async def test_a_transaction_that_a_person_resolved_is_kept(sqlite_url: str) -> None:
    async with running(sqlite_url) as service:
        await service.register("inventory")
        plain = (await service.begin(REQUEST)).json()
        service.participants.script("/inventory/confirm", [reply(410)])
        hung = (await service.begin(REQUEST | {"answer_at": "decision"})).json()
        await service.until(hung["id"], lambda transaction: transaction["hung"])
        path = f"/v1/admin/transactions/{hung['id']}/branches/inventory/resolve"
        answer = await service.client.post(path, json={"as": "cancelled", "reason": "refunded by hand"})
        assert answer.json()["outcome"] == "mixed"
    today = MachineClock()
    async with running(sqlite_url, clock=lambda: today() + 31 * 86_400.0) as service:
        await until(lambda: is_gone(service, plain["id"]))
        assert (await service.get(hung["id"]))["outcome"] == "mixed"
        decision = await service.json(f"/v1/transactions/{hung['id']}/decision")
        assert (decision["decision"], decision["finished"]) == ("confirm", True)


async def test_a_directory_that_is_not_there_keeps_everything_and_the_service_ready(
    sqlite_url: str, tmp_path: Path
) -> None:
    async with running(sqlite_url) as service:
        await service.register("inventory")
        begun = (await service.begin(REQUEST)).json()
    today = MachineClock()
    missing = tmp_path / "nowhere"
    async with running(sqlite_url, export_directory=missing, clock=lambda: today() + 31 * 86_400.0) as service:

        async def has_failed() -> bool:
            return "holdfast_purge_failures_total 1.0" in (await service.client.get("/metrics")).text

        await until(has_failed)
        assert await service.get(begun["id"]) == begun
        assert (await service.client.get("/readyz")).status_code == 200


async def test_a_page_ends_early_rather_than_hold_everything_in_memory(service: Service) -> None:
    payload = "x" * 900_000
    request = {"branches": [{"participant": "inventory", "payload": payload}], "answer_at": "record"}
    begun = [(await service.begin(request)).json()["id"] for _ in range(12)]
    first = await service.json("/v1/transactions", limit=500)
    assert 1 < len(first["items"]) < 12
    second = await service.json("/v1/transactions", limit=500, cursor=first["next_cursor"])
    assert [item["id"] for item in first["items"] + second["items"]] == begun[::-1]
    assert second["next_cursor"] is None
