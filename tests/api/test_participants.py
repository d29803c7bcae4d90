"""/v1/participants: the registry, and that it is looked up at each call."""

import asyncio
from typing import Any, Final

import pytest

from app.storage.migrations import migrate
from tests.harness.coordinator_app import Gate, Json, Service, base_url, check_problem, lost, reply, running

PATH: Final = "/v1/participants"
BODY: Final[Json] = {"base_url": base_url("shipping"), "call_timeout_s": 2.5, "concurrency_max": 8}


async def test_put_is_201_for_a_new_name_and_200_afterwards(service: Service) -> None:
    created = await service.client.put(f"{PATH}/shipping", json=BODY)
    assert (created.status_code, created.json()) == (201, {"name": "shipping"} | BODY)
    again = await service.client.put(f"{PATH}/shipping", json=BODY)
    assert (again.status_code, again.json()) == (200, created.json())
    moved = await service.client.put(f"{PATH}/shipping", json={"base_url": "http://localhost:9100/s/"})
    assert moved.status_code == 200
    assert moved.json() == (
        {"name": "shipping", "base_url": "http://localhost:9100/s/", "call_timeout_s": None, "concurrency_max": 64}
    )
    assert await service.json(f"{PATH}/shipping") == moved.json()


async def test_with_check_only_a_participant_that_is_there_is_registered(service: Service) -> None:
    url = f"{PATH}/shipping?check=true"
    created = await service.client.put(url, json=BODY)
    assert (created.status_code, created.json()) == (201, {"name": "shipping"} | BODY)
    assert sorted(service.participants.paths()) == ["/shipping/cancel", "/shipping/confirm", "/shipping/try"]
    service.participants.script("/shipping/confirm", [reply(404, {"detail": "Not Found"})])
    document = check_problem(
        await service.client.put(url, json=BODY | {"concurrency_max": 1}), 422, "participant-check-failed"
    )
    assert [each["at"] for each in document["errors"]] == ["confirm"]
    assert document["detail"].startswith("confirm: HTTP 404 Not Found: there seems to be no such route")
    assert await service.json(f"{PATH}/shipping") == created.json()
    replaced = await service.client.put(f"{PATH}/shipping", json=BODY | {"concurrency_max": 1})
    assert replaced.json()["concurrency_max"] == 1, "without check it is registered all the same"


async def test_the_list_is_ordered_by_name(service: Service) -> None:
    await service.register("zebra", "Alpha", "a.b-c_d")
    items = (await service.json(PATH))["items"]
    assert [each["name"] for each in items] == ["Alpha", "a.b-c_d", "inventory", "payment", "zebra"]
    assert items[2] == await service.json(f"{PATH}/inventory")


async def test_delete(service: Service) -> None:
    deleted = await service.client.delete(f"{PATH}/payment")
    assert (deleted.status_code, deleted.content) == (204, b"")
    check_problem(await service.client.delete(f"{PATH}/payment"), 404, "participant-not-found")
    check_problem(await service.client.get(f"{PATH}/payment"), 404, "participant-not-found")
    answer = await service.begin({"branches": [{"participant": "payment"}]})
    document = check_problem(answer, 422, "unknown-participant")
    assert document["participant"] == "payment"
    assert "PUT /v1/participants/payment" in document["detail"]


async def test_a_participant_in_use_stays_until_its_transactions_end(service: Service) -> None:
    gate = Gate()
    service.participants.script("/payment/confirm", [gate])
    begun = await service.begin({"branches": [{"participant": "payment"}], "answer_at": "decision"})
    check_problem(await service.client.delete(f"{PATH}/payment"), 409, "participant-in-use")
    assert (await service.client.get(f"{PATH}/payment")).status_code == 200
    assert (await service.client.delete(f"{PATH}/inventory")).status_code == 204
    gate.open()
    await service.until_finished(begun.json()["id"])
    assert (await service.client.delete(f"{PATH}/payment")).status_code == 204


async def test_a_participant_that_moved_is_called_where_it_is_now(service: Service) -> None:
    gate = Gate(lost())
    service.participants.script("/payment/confirm", [gate])
    begun = await service.begin({"branches": [{"participant": "payment"}], "answer_at": "decision"})
    await gate.reached()
    await service.client.put(f"{PATH}/payment", json={"base_url": "http://127.0.0.1:9999/moved/"})
    gate.open()
    assert (await service.until_finished(begun.json()["id"]))["outcome"] == "confirmed"
    assert [each.url for each in service.participants.received] == [
        "http://127.0.0.1:9000/payment/try",
        "http://127.0.0.1:9000/payment/confirm",
        "http://127.0.0.1:9999/moved/confirm",
    ]


async def test_a_name_may_be_long_and_no_longer(service: Service) -> None:
    assert (await service.client.put(f"{PATH}/{'n' * 64}", json=BODY)).status_code == 201
    for name in ("n" * 65, "-n", "a b", "ä", "a%2Fb"):
        answer = await service.client.put(f"{PATH}/{name}", json=BODY)
        check_problem(answer, *((404, "not-found") if name == "a%2Fb" else (422, "invalid")))


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ({"base_url": None}, "base_url"),
        ({"base_url": 9000}, "base_url"),
        ({"base_url": "http://127.0.0.1/" + "a" * 2000}, "base_url"),
        ({"call_timeout_s": 0}, "call_timeout_s"),
        ({"call_timeout_s": -1}, "call_timeout_s"),
        ({"call_timeout_s": 3601}, "call_timeout_s"),
        ({"call_timeout_s": "5"}, "call_timeout_s"),
        ({"call_timeout_s": True}, "call_timeout_s"),
        ({"concurrency_max": 0}, "concurrency_max"),
        ({"concurrency_max": 1.5}, "concurrency_max"),
        ({"concurrency_max": 10**30}, "concurrency_max"),
        ({"name": "shipping"}, "name"),
        ({"timeout": 5}, "timeout"),
    ],
)
async def test_a_bad_entry_is_422_and_not_registered(service: Service, change: Json, names: str) -> None:
    document = check_problem(await service.client.put(f"{PATH}/shipping", json=BODY | change), 422, "invalid")
    assert [error["at"] for error in document["errors"]] == [f"body/{names}"]
    check_problem(await service.client.get(f"{PATH}/shipping"), 404, "participant-not-found")


@pytest.mark.parametrize(
    "url",
    [
        "http://example.org",
        "http://169.254.169.254/latest",
        "http://127.0.0.1@example.org",
        "http://user:secret@127.0.0.1",
        "ftp://127.0.0.1",
        "127.0.0.1:9000",
        "//127.0.0.1",
        "http://",
        "http://127.0.0.1:0",
        "http://127.0.0.1:99999",
        "http://127.0.0.1#a",
        "http://127.0.0.1\\@example.org",
        "file:///etc/passwd",
        "http://127.0.0.1/?shard=1",
        "http://127.0.0.1/a?",
        "",
    ],
)
async def test_a_base_url_that_may_not_be_called_is_422(service: Service, url: str) -> None:
    answer = await service.client.put(f"{PATH}/payment", json={"base_url": url})
    check_problem(answer, 422, "endpoint-not-allowed")
    assert (await service.json(f"{PATH}/payment"))["base_url"] == base_url("payment")
    if "?" in url:
        return  # a query is part of the URL of an endpoint, but nothing can be added to it
    urls = {"try": base_url("x"), "confirm": url, "cancel": base_url("x")}
    document = check_problem(
        await service.begin({"branches": [{"name": "b", "endpoints": urls}]}), 422, "endpoint-not-allowed"
    )
    assert document["branch"] == "b"
    assert (await service.rows())["transactions"] == 0


async def test_the_allow_list_is_what_it_is_configured_to_be(sqlite_url: str) -> None:
    async with running(sqlite_url, allowed_endpoints="https://*.internal:443, http://10.0.0.*:*") as service:
        for url, status in {
            "https://stock.internal/tcc": 201,
            "http://10.0.0.7:8080": 201,
            "https://stock.internal:444": 422,
            "http://stock.internal:443": 422,
            "http://127.0.0.1:9000": 422,
            "http://10.0.0.7.example.org": 422,
        }.items():
            answer = await service.client.put(f"{PATH}/n{abs(hash(url))}", json={"base_url": url})
            assert answer.status_code == status, (url, answer.text)


async def test_settings_seed_the_registry(sqlite_url: str) -> None:
    seeds: dict[str, Any] = {"inventory": base_url("inventory"), "payment": BODY}
    async with running(sqlite_url, participants=seeds) as service:
        items = (await service.json(PATH))["items"]
        assert items == [
            {"name": "inventory", "base_url": base_url("inventory"), "call_timeout_s": None, "concurrency_max": 64},
            {"name": "payment"} | BODY,
        ]
        await service.register("shipping")
    async with running(sqlite_url) as service:
        assert [each["name"] for each in (await service.json(PATH))["items"]] == ["inventory", "payment", "shipping"]


async def test_what_was_read_before_a_change_does_not_undo_it(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The registry is also read now and then, because other replicas change it: that read may take its time."""
    read, slow, has_read = service.parts.journal.read, asyncio.Event(), asyncio.Event()

    async def read_slowly_once(*what: Any) -> Any:
        found = await read(*what)
        if not has_read.is_set():
            has_read.set()
            await slow.wait()
        return found

    monkeypatch.setattr(service.parts.journal, "read", read_slowly_once)
    refresh = asyncio.create_task(service.parts.registry.refresh())
    await has_read.wait()
    change = asyncio.create_task(service.client.put(f"{PATH}/shipping", json=BODY))
    await asyncio.wait([change], timeout=0.2)  # it is done, or waits for the read
    slow.set()
    await asyncio.gather(refresh, change)
    assert (await service.client.get(f"{PATH}/shipping")).status_code == 200


async def test_the_key_of_a_finished_transaction_is_answered_though_its_participant_is_gone(service: Service) -> None:
    request = {"branches": [{"participant": "payment"}]}
    first = await service.begin(request, idempotency_key='"k"')
    assert (await service.client.delete(f"{PATH}/payment")).status_code == 204
    second = await service.begin(request, idempotency_key='"k"')
    assert (second.status_code, second.json()) == (201, first.json())


async def test_a_participants_own_timeout_and_slots_count(service: Service) -> None:
    await service.register("slow", call_timeout_s=0.02, concurrency_max=1)
    gate = Gate()
    service.participants.script("/slow/try", [gate, reply(200)])
    body = (await service.begin({"branches": [{"participant": "slow"}]})).json()
    calls = (await service.json(f"/v1/transactions/{body['id']}/calls"))["items"]
    assert [(call["operation"], call["answer"]) for call in calls] == [
        ("try", "unanswered"),
        ("try", "succeeded"),
        ("confirm", "succeeded"),
    ]
    assert calls[0]["error"] == "no answer within 0.02 s"


async def test_a_begin_records_nothing_when_another_replica_has_just_deleted_its_participant(database_url: str) -> None:
    migrate(database_url)
    async with running(database_url) as service, running(database_url) as other:
        await service.register("inventory", "payment")
        assert (await other.client.delete("/v1/participants/inventory")).status_code == 204
        request = {"branches": [{"participant": "payment"}, {"participant": "inventory"}]}
        problem = check_problem(await service.begin(request), 422, "unknown-participant")
        assert problem["participant"] == "inventory"
        assert (await service.rows())["transactions"] == 0
        await service.register("inventory")
        assert (await service.begin(request)).status_code == 201
