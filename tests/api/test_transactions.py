"""What clients see of one transaction: the resource, waiting for it, its calls, its decision, and cancelling it."""

import asyncio
from collections.abc import Sequence
from datetime import datetime
from uuid import UUID

import pytest
from sqlalchemy import Connection

from app.storage import tables
from app.storage.migrations import migrate
from tests.harness.coordinator_app import Gate, Json, Service, check_problem, lost, reply, running

ORDER: Json = {"branches": [{"participant": "inventory", "payload": 1}, {"participant": "payment", "payload": 2}]}
UNKNOWN = [
    "01a1fc2e-20e8-7db5-893d-508caa6c9bfb",
    "00000000-0000-0000-0000-000000000000",
    "order-4711",
    "%00",
    "%F0%9F%98%80",
    "'; --",
    "x" * 3000,
]


async def undecided(service: Service, gate: Gate) -> str:
    """A transaction whose first Try waits at `gate`."""
    service.participants.script("/inventory/try", [gate])
    answer = await service.begin(ORDER | {"answer_at": "record"})
    await gate.reached()
    transaction_id: str = answer.json()["id"]
    return transaction_id


@pytest.mark.parametrize("unknown", UNKNOWN)
@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("GET", "", None),
        ("GET", "/calls", None),
        ("GET", "/decision", None),
        ("POST", "/cancel", None),
        ("POST", "admin:/retry", None),
        ("POST", "admin:/branches/inventory/resolve", {"as": "confirmed", "reason": "seen"}),
    ],
)
async def test_unknown_is_404(service: Service, unknown: str, method: str, path: str, body: Json | None) -> None:
    root = "/v1/admin/transactions" if path.startswith("admin:") else "/v1/transactions"
    answer = await service.client.request(method, f"{root}/{unknown}{path.removeprefix('admin:')}", json=body)
    check_problem(answer, 404, "unknown-transaction")


async def test_an_id_is_a_uuid_and_ids_are_ordered_by_time(service: Service) -> None:
    ids = [(await service.begin(ORDER | {"answer_at": "record"})).json()["id"] for _ in range(5)]
    assert {UUID(each).version for each in ids} == {7}
    for each in ids:
        created_at = (await service.get(each))["created_at"]
        assert abs((UUID(each).int >> 80) / 1000 - datetime.fromisoformat(created_at).timestamp()) < 0.002
        await service.until_finished(each)


async def test_an_etag_answers_304_until_something_changes(service: Service) -> None:
    gate = Gate()
    transaction_id = await undecided(service, gate)
    path = f"/v1/transactions/{transaction_id}"
    await service.until(transaction_id, lambda transaction: transaction["branches"][1]["phase"] == "held")
    first = await service.client.get(path)
    etag = first.headers["etag"]
    assert etag.startswith('"')
    assert etag.endswith('"')
    for header in (etag, f"W/{etag}", f'"other", {etag}', "*"):
        again = await service.client.get(path, headers={"If-None-Match": header})
        assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", etag)
    gate.open()
    await service.until_finished(transaction_id)
    changed = await service.client.get(path, headers={"If-None-Match": etag})
    assert changed.status_code == 200
    assert changed.headers["etag"] != etag
    assert (await service.client.get(path)).headers["etag"] == changed.headers["etag"]


async def test_wait_answers_at_the_end(service: Service) -> None:
    gate = Gate()
    path = f"/v1/transactions/{await undecided(service, gate)}"
    waiting = [asyncio.create_task(service.client.get(path, headers={"Prefer": "wait=60"})) for _ in range(3)]
    at_once = await service.client.get(path)
    assert at_once.json()["phase"] == "trying"
    assert not any(task.done() for task in waiting)
    gate.open()
    for answer in await asyncio.gather(*waiting):
        assert answer.status_code == 200
        assert answer.headers["preference-applied"] == "wait=60"
        assert answer.json()["outcome"] == "confirmed"


async def test_wait_answers_when_the_time_is_over(service: Service) -> None:
    gate = Gate()
    path = f"/v1/transactions/{await undecided(service, gate)}"
    answer = await service.client.get(path, headers={"Prefer": "wait=0.02"})
    assert (answer.status_code, answer.json()["phase"]) == (200, "trying")
    gate.open()
    assert (await service.client.get(path, headers={"Prefer": "wait=60"})).json()["phase"] == "confirmed"
    assert (await service.client.get(path, headers={"Prefer": "wait=60"})).json()["phase"] == "confirmed"


async def test_calls_are_listed_oldest_first(service: Service) -> None:
    service.participants.script("/inventory/try", [lost(), reply(503, "busy"), reply(200, {"hold_id": "h-1"})])
    service.participants.script("/payment/try", [reply(402, {"detail": "no funds"})])
    request = {"branches": [{"participant": "inventory"}, {"participant": "payment"}], "try_order": "sequential"}
    transaction = check_problem(await service.begin(request), 409, "transaction-cancelled")["transaction"]
    page = await service.json(f"/v1/transactions/{transaction['id']}/calls")
    assert page["next_cursor"] is None
    seen = [(c["branch"], c["operation"], c["attempt"], c["answer"], c["http_status"]) for c in page["items"]]
    assert seen[:4] == [
        ("inventory", "try", 1, "unanswered", None),
        ("inventory", "try", 2, "unanswered", 503),
        ("inventory", "try", 3, "succeeded", 200),
        ("payment", "try", 1, "refused", 402),
    ]
    assert sorted(seen[4:]) == [
        ("inventory", "cancel", 1, "succeeded", 200),
        ("payment", "cancel", 1, "succeeded", 200),
    ]
    responses = [(c["error"], c["response"]) for c in page["items"]]
    assert "ConnectError" in responses[0][0]
    assert responses[0][1] is None
    assert responses[1] == ("HTTP 503 busy", "busy")
    assert (responses[2][0], responses[2][1]) == (None, '{"hold_id":"h-1"}')
    assert responses[3][0] == "no funds"
    assert all(c["duration_ms"] >= 0 and datetime.fromisoformat(c["started_at"]) for c in page["items"])
    fields = {"branch", "operation", "attempt", "started_at", "duration_ms", "answer", "http_status"}
    assert {frozenset(c) for c in page["items"]} == {frozenset(fields | {"error", "response", "masked"})}


async def test_calls_are_listed_while_they_are_made_and_page_by_page(service: Service) -> None:
    gate = Gate()
    service.participants.script("/inventory/try", [*[reply(503)] * 4, gate])
    answer = await service.begin({"branches": [{"participant": "inventory"}], "answer_at": "record"})
    transaction_id = answer.json()["id"]
    await gate.reached()
    path = f"/v1/transactions/{transaction_id}/calls"
    assert [c["attempt"] for c in (await service.json(path))["items"]] == [1, 2, 3, 4]
    gate.open()
    await service.until_finished(transaction_id)
    seen, cursor = [], None
    while True:
        page = await service.json(path, limit=2, **({"cursor": cursor} if cursor else {}))
        assert len(page["items"]) <= 2
        seen += [(c["operation"], c["attempt"]) for c in page["items"]]
        cursor = page["next_cursor"]
        if cursor is None:
            break
    assert seen == [("try", n) for n in (1, 2, 3, 4, 5)] + [("confirm", 1)]


async def test_long_responses_are_cut_in_the_history(service: Service) -> None:
    service.participants.script("/inventory/try", [reply(409, "é" * 5000)])
    transaction = check_problem(await service.begin(ORDER), 409, "transaction-cancelled")["transaction"]
    page = await service.json(f"/v1/transactions/{transaction['id']}/calls")
    refusal = next(c for c in page["items"] if c["branch"] == "inventory" and c["operation"] == "try")
    assert refusal["response"] == "é" * 2000
    assert refusal["error"] == transaction["reason"]["detail"] == "é" * 500


async def test_the_decision_for_participants_in_doubt(service: Service) -> None:
    gate = Gate()
    transaction_id = await undecided(service, gate)
    path = f"/v1/transactions/{transaction_id}/decision"
    doubt = await service.json(path)
    assert doubt.keys() == {"decision", "recheck_in_s", "finished", "coordinator_id"}
    assert (doubt["decision"], doubt["finished"]) == ("undecided", False)
    assert 1 <= doubt["recheck_in_s"] <= 30
    for branch in ("inventory", "payment", "shipping"):
        assert (await service.json(path, branch=branch))["decision"] == "undecided", "whoever asks"
    gate.open()
    await service.until_finished(transaction_id)
    assert await service.json(path) == {
        "decision": "confirm",
        "recheck_in_s": 0,
        "finished": True,
        "coordinator_id": service.parts.coordinator_id,
    }


@pytest.mark.parametrize(
    "stranger", ["shipping", "Inventory", "inventory ", "", "\x00", "\N{AIRPLANE}/?&#", "x" * 3000]
)
async def test_a_branch_that_a_decided_transaction_does_not_have_is_cancelled(service: Service, stranger: str) -> None:
    gate = Gate()
    service.participants.script("/inventory/confirm", [gate])
    path = f"/v1/transactions/{(await service.begin(ORDER | {'answer_at': 'decision'})).json()['id']}/decision"
    for finished in (False, True):
        for branch in ("inventory", "payment"):
            told = await service.json(path, branch=branch)
            assert (told["decision"], told["finished"]) == ("confirm", finished)
        told = await service.json(path, branch=stranger)
        assert told == {
            "decision": "cancel",
            "recheck_in_s": 0,
            "finished": finished,
            "coordinator_id": service.parts.coordinator_id,
        }
        gate.open()
        await service.until_finished(path.split("/")[3])


@pytest.mark.parametrize("unknown", UNKNOWN)
async def test_who_says_that_a_transaction_is_unknown_says_who_it_is(service: Service, unknown: str) -> None:
    for query in ({}, {"branch": "inventory"}):
        answer = await service.client.get(f"/v1/transactions/{unknown}/decision", params=query)
        document = check_problem(answer, 404, "unknown-transaction")
        assert document["coordinator_id"] == service.parts.coordinator_id


async def test_a_transaction_is_unknown_when_the_writer_does_not_find_it(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a read misses, from a server that lags behind, must not lead a participant to give its hold up."""
    begun = (await service.begin(ORDER)).json()
    monkeypatch.setattr("app.storage.queries.find_decision", lambda *_: None)
    for branch, decision in (("payment", "confirm"), ("shipping", "cancel")):
        told = await service.json(f"/v1/transactions/{begun['id']}/decision", branch=branch)
        assert told["decision"] == decision


async def test_what_a_read_misses_is_unknown_nowhere(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    path = f"/v1/transactions/{(await service.begin(ORDER)).json()['id']}"
    monkeypatch.setattr("app.storage.transactions.find", lambda *_: None)
    for method, url in (("GET", path), ("GET", f"{path}/calls"), ("POST", f"{path}/cancel")):
        check_problem(await service.client.request(method, url), 503, "unavailable")


async def test_all_replicas_of_a_database_are_one_coordinator(postgres_url: str, sqlite_url: str) -> None:
    migrate(postgres_url)
    ids = []
    for _ in range(2):
        async with running(postgres_url) as first, running(postgres_url) as second:
            ids += [first.parts.coordinator_id, second.parts.coordinator_id]
    async with running(sqlite_url) as other:
        assert other.parts.coordinator_id not in ids
    assert len(ids) == 4
    assert len(set(ids)) == 1


async def test_a_decision_is_told_while_it_is_carried_out(service: Service) -> None:
    gate = Gate()
    service.participants.script("/inventory/confirm", [gate])
    confirming = (await service.begin(ORDER | {"answer_at": "decision"})).json()["id"]
    assert (await service.json(f"/v1/transactions/{confirming}/decision"))["decision"] == "confirm"
    gate.open()
    await service.until_finished(confirming)
    service.participants.script("/payment/try", [reply(409)])
    cancelled = check_problem(await service.begin(ORDER), 409, "transaction-cancelled")["transaction"]["id"]
    assert (await service.json(f"/v1/transactions/{cancelled}/decision"))["decision"] == "cancel"


async def test_cancel_aborts_what_is_undecided(service: Service) -> None:
    gate = Gate(reply(200, {"hold_id": "late"}))
    transaction_id = await undecided(service, gate)
    path = f"/v1/transactions/{transaction_id}"
    answer = await service.client.post(f"{path}/cancel")
    assert answer.status_code == 200
    assert (answer.json()["phase"], answer.json()["decision"]) == ("cancelling", "cancel")
    assert answer.json()["reason"]["code"] == "requested"
    assert "/inventory/cancel" not in service.participants.paths(), "its own Try has not ended"
    again = await service.client.post(f"{path}/cancel")
    assert (again.status_code, again.json()["decision"]) == (200, "cancel")
    gate.open()
    finished = await service.until_finished(transaction_id)
    assert finished["outcome"] == "cancelled"
    assert finished["branches"][0]["attempts"] == {"try": 1, "confirm": 0, "cancel": 1}
    answer = await service.client.post(f"{path}/cancel")
    assert (answer.status_code, answer.json()) == (200, finished)


async def test_the_initiator_that_waits_learns_of_a_cancel(service: Service) -> None:
    gate = Gate()
    service.participants.script("/inventory/try", [gate])
    waiting = asyncio.create_task(service.begin(ORDER))
    await gate.reached()
    (transaction,) = (await service.json("/v1/transactions"))["items"]
    await service.client.post(f"/v1/transactions/{transaction['id']}/cancel")
    gate.open()
    document = check_problem(await waiting, 409, "transaction-cancelled")
    assert document["transaction"]["reason"]["code"] == "requested"


async def test_cancel_after_the_decision_is_409(service: Service) -> None:
    gate = Gate()
    service.participants.script("/inventory/confirm", [gate])
    transaction_id = (await service.begin(ORDER | {"answer_at": "decision"})).json()["id"]
    path = f"/v1/transactions/{transaction_id}/cancel"
    document = check_problem(await service.client.post(path), 409, "already-decided")
    assert (document["transaction"]["id"], document["transaction"]["phase"]) == (transaction_id, "confirming")
    gate.open()
    await service.until_finished(transaction_id)
    document = check_problem(await service.client.post(path), 409, "already-decided")
    assert document["transaction"]["phase"] == "confirmed"
    assert not any(path.endswith("/cancel") for path in service.participants.paths())


async def test_cancels_at_once_agree(service: Service) -> None:
    gate = Gate()
    transaction_id = await undecided(service, gate)
    path = f"/v1/transactions/{transaction_id}/cancel"
    answers = await asyncio.gather(*(service.client.post(path) for _ in range(10)))
    assert {answer.status_code for answer in answers} == {200}
    gate.open()
    await service.until_finished(transaction_id)
    assert service.participants.paths().count("/inventory/cancel") == 1


async def test_what_an_earlier_process_began_is_seen_and_finished_by_the_next(sqlite_url: str) -> None:
    async with running(sqlite_url) as service:
        await service.register("inventory", "payment")
        service.participants.script("/payment/confirm", [lost()])
        begun = (await service.begin(ORDER | {"answer_at": "decision"})).json()
    async with running(sqlite_url) as service:
        finished = await service.until_finished(begun["id"])
        assert finished["outcome"] == "confirmed"
        assert finished["created_at"] == begun["created_at"]
        assert finished["branches"][1]["attempts"]["confirm"] > 1


@pytest.mark.parametrize(("method", "path"), [("GET", ""), ("POST", "/cancel")])
async def test_a_record_of_a_newer_version_is_not_this_replicas(service: Service, method: str, path: str) -> None:
    gate = Gate()
    service.participants.script("/inventory/try", [gate])
    begun = await service.begin({"branches": [{"participant": "inventory"}], "answer_at": "record"})
    gate.open()
    transaction = await service.until_finished(begun.json()["id"])
    await service.parts.journal.write(_newer_format, transaction["id"])
    answer = await service.client.request(method, f"/v1/transactions/{transaction['id']}{path}")
    assert "another version" in check_problem(answer, 503, "unavailable")["detail"]
    assert answer.headers["retry-after"]
    assert (await service.json("/v1/transactions"))["items"] == []


def _newer_format(connection: Connection, items: Sequence[str]) -> list[None]:
    for id_ in items:
        connection.execute(tables.transactions.update().where(tables.transactions.c.id == id_).values(format=99))
    return [None] * len(items)
