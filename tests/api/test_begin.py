"""POST /v1/transactions: section 3 of docs/reference/protocol.md, Begin."""

import asyncio
from datetime import datetime, timedelta
from typing import Any, Final

import pytest
from sqlalchemy.pool import QueuePool

from tests.harness.coordinator_app import (
    WAIT_TIMEOUT_S,
    Gate,
    Json,
    Reaction,
    Service,
    check_problem,
    endpoints,
    lost,
    reply,
    running,
    until,
)

ORDER: Final[Json] = {
    "name": "place-order",
    "reference": "order-4711",
    "branches": [
        {"participant": "inventory", "payload": {"sku": "A-1", "quantity": 2}},
        {"name": "card", "participant": "payment", "payload": {"amount": "99.00"}},
    ],
}
FIELDS: Final = {
    *("id", "name", "reference", "phase", "decision", "outcome", "reason", "hung", "hung_since", "hung_reason"),
    *("created_at", "deadline", "decided_at", "finished_at", "next_attempt_at", "branches", "try_order", "undo"),
    *("owner", "masked"),
}
BRANCH_FIELDS: Final = {
    *("name", "participant", "endpoints", "call_timeout_s", "phase", "payload", "result", "attempts", "last_error"),
    *("hung_reason", "next_attempt_at", "resolution", "kind", "after", "sending"),
}


async def test_confirmed_is_201_with_the_whole_resource(service: Service) -> None:
    service.participants.script("/inventory/try", [reply(200, {"hold_id": "h-1"})])
    answer = await service.begin(ORDER)
    assert answer.status_code == 201
    assert answer.headers["content-type"] == "application/json"
    body = answer.json()
    assert answer.headers["location"] == f"/v1/transactions/{body['id']}"
    assert body.keys() == FIELDS
    assert (body["name"], body["reference"], body["try_order"]) == ("place-order", "order-4711", "parallel")
    assert (body["phase"], body["decision"], body["outcome"]) == ("confirmed", "confirm", "confirmed")
    assert (body["reason"], body["hung"], body["hung_since"], body["hung_reason"]) == (None, False, None, None)
    assert body["next_attempt_at"] is None
    times = [datetime.fromisoformat(body[name]) for name in ("created_at", "decided_at", "finished_at", "deadline")]
    assert times == sorted(times)
    assert all(time.utcoffset() == timedelta(0) for time in times)
    assert (times[3] - times[0]).total_seconds() == 30
    inventory, card = body["branches"]
    assert inventory.keys() == card.keys() == BRANCH_FIELDS
    assert (inventory["name"], inventory["participant"], inventory["phase"]) == ("inventory", "inventory", "confirmed")
    assert (card["name"], card["participant"], card["phase"]) == ("card", "payment", "confirmed")
    assert (inventory["payload"], inventory["result"]) == ({"sku": "A-1", "quantity": 2}, {"hold_id": "h-1"})
    assert inventory["attempts"] == card["attempts"] == {"try": 1, "confirm": 1, "cancel": 0}
    assert inventory["last_error"] is None
    assert await service.get(body["id"]) == body


async def test_a_refusal_is_409_and_what_was_held_is_cancelled(service: Service) -> None:
    service.participants.script("/payment/try", [reply(409, {"detail": "insufficient funds"})])
    answer = await service.begin(ORDER)
    document = check_problem(answer, 409, "transaction-cancelled")
    transaction = document["transaction"]
    assert answer.headers["location"] == f"/v1/transactions/{transaction['id']}"
    assert (transaction["phase"], transaction["decision"], transaction["outcome"]) == (
        ("cancelled", "cancel", "cancelled")
    )
    assert transaction["reason"] == {"code": "refused", "branch": "card", "detail": "insufficient funds"}
    assert [branch["phase"] for branch in transaction["branches"]] == ["cancelled", "cancelled"]
    assert [branch["attempts"]["confirm"] for branch in transaction["branches"]] == [0, 0]
    assert "insufficient funds" in document["detail"]
    assert await service.get(transaction["id"]) == transaction


@pytest.mark.parametrize("prefer", ["wait=0", "respond-async", "wait=0.01", "respond-async, wait=0"])
@pytest.mark.parametrize("answer_at", ["end", "decision", "record", None])
async def test_not_decided_in_time_is_202(service: Service, prefer: str, answer_at: str | None) -> None:
    gate = Gate()
    service.participants.script("/inventory/try", [gate])
    answer = await service.begin(ORDER | ({"answer_at": answer_at} if answer_at else {}), prefer=prefer)
    assert answer.status_code == 202
    body = answer.json()
    assert answer.headers["location"] == f"/v1/transactions/{body['id']}"
    assert answer.headers["preference-applied"] == prefer
    assert (body["phase"], body["decision"], body["outcome"]) == ("trying", "undecided", None)
    assert body["decided_at"] is body["finished_at"] is None
    gate.open()
    assert (await service.until_finished(body["id"]))["outcome"] == "confirmed"


async def test_answer_at_record_waits_for_nobody(service: Service) -> None:
    gate = Gate()
    service.participants.script("/inventory/try", [gate])
    answer = await service.begin(ORDER | {"answer_at": "record"})
    assert answer.status_code == 202
    assert "preference-applied" not in answer.headers
    gate.open()
    assert (await service.until_finished(answer.json()["id"]))["outcome"] == "confirmed"


async def test_answer_at_decision_leaves_confirm_behind_the_callers_back(service: Service) -> None:
    gate = Gate()
    service.participants.script("/inventory/confirm", [gate])
    answer = await service.begin(ORDER | {"answer_at": "decision"})
    assert answer.status_code == 202
    body = answer.json()
    assert (body["phase"], body["decision"]) == ("confirming", "confirm")
    gate.open()
    assert (await service.until_finished(body["id"]))["outcome"] == "confirmed"


async def test_answer_at_decision_never_lets_a_cancel_pass_for_a_success(service: Service) -> None:
    gate = Gate()
    service.participants.script("/inventory/cancel", [gate])
    service.participants.script("/payment/try", [reply(422, "no")])
    transaction = check_problem(await service.begin(ORDER | {"answer_at": "decision"}), 409, "transaction-cancelled")[
        "transaction"
    ]
    assert (transaction["phase"], transaction["outcome"]) == ("cancelling", None)
    gate.open()
    await service.until_finished(transaction["id"])


async def test_answer_at_end_is_not_409_before_the_cancel_is_carried_out(service: Service) -> None:
    gate = Gate()
    service.participants.script("/inventory/cancel", [gate])
    service.participants.script("/payment/try", [reply(409)])
    answering = asyncio.create_task(service.begin(ORDER, prefer="wait=60", idempotency_key='"k"'))
    await gate.reached()
    early = await service.begin(ORDER, prefer="wait=0", idempotency_key='"k"')
    assert early.status_code == 202
    assert (early.json()["phase"], early.json()["decision"]) == ("cancelling", "cancel")
    assert not answering.done()
    gate.open()
    answer = await answering
    assert answer.headers["preference-applied"] == "wait=60"
    transaction = check_problem(answer, 409, "transaction-cancelled")["transaction"]
    assert transaction["outcome"] == "cancelled"
    again = await service.begin(ORDER, prefer="respond-async", idempotency_key='"k"')
    assert check_problem(again, 409, "transaction-cancelled")["transaction"] == transaction


@pytest.mark.parametrize("failure", [reply(503), reply(404), reply(302), lost()])
@pytest.mark.parametrize(
    ("decision", "phase", "end"), [("confirm", "confirming", "confirmed"), ("cancel", "cancelling", "cancelled")]
)
async def test_answer_at_end_waits_no_longer_once_a_call_after_the_decision_has_failed(
    service: Service, decision: str, phase: str, end: str, failure: Reaction
) -> None:
    gate = Gate()
    service.participants.script(f"/inventory/{decision}", [failure, gate])
    if decision == "cancel":
        service.participants.script("/payment/try", [reply(409)])
    answer = await asyncio.wait_for(service.begin(ORDER, prefer="wait=3600"), WAIT_TIMEOUT_S)
    assert answer.status_code == 202
    body = answer.json()
    assert (body["decision"], body["phase"], body["outcome"]) == (decision, phase, None)
    polling = asyncio.create_task(service.client.get(answer.headers["location"], headers={"Prefer": "wait=3600"}))
    await gate.reached()
    assert not polling.done(), "whoever asks for the end waits for the end"
    gate.open()
    assert (await polling).json()["phase"] == end


async def test_answer_at_end_waits_for_a_participant_that_is_still_working(service: Service) -> None:
    gate = Gate()
    service.participants.script("/inventory/confirm", [reply(202), gate])
    answering = asyncio.create_task(service.begin(ORDER, prefer="wait=3600"))
    await gate.reached()
    assert not answering.done()
    gate.open()
    assert (await answering).status_code == 201


async def test_answer_at_end_waits_while_only_a_try_has_failed(service: Service) -> None:
    gate = Gate()
    service.participants.script("/inventory/try", [reply(503), reply(200)])
    service.participants.script("/inventory/confirm", [gate])
    answering = asyncio.create_task(service.begin(ORDER, prefer="wait=3600"))
    await gate.reached()
    assert not answering.done()
    gate.open()
    assert (await answering).status_code == 201


@pytest.mark.parametrize(
    "prefer",
    ["wait", "wait=", "wait=soon", "wait=-1", "wait=1e3", "return=minimal", "", ";;,,=", 'x="', "wait=9999999999999"],
)
async def test_preferences_that_make_no_sense_are_passed_over(service: Service, prefer: str) -> None:
    answer = await service.begin(ORDER, prefer=prefer)
    assert answer.status_code == 201
    assert "preference-applied" not in answer.headers


@pytest.mark.parametrize(
    ("prefer", "applied"),
    [
        ("wait=20", "wait=20"),
        ("Wait = 20", "wait=20"),
        ('wait="20"', "wait=20"),
        ("handling=lenient, wait=20; x=y", "wait=20"),
        ("wait=20, wait=0", "wait=20"),
        ("wait=86400", "wait=3600"),
        ('note="a, wait=0", wait=20', "wait=20"),
        ("respond-async, wait=20", "respond-async, wait=20"),
    ],
)
async def test_the_wait_that_is_applied_is_named(service: Service, prefer: str, applied: str) -> None:
    answer = await service.begin(ORDER, prefer=prefer)
    assert (answer.status_code, answer.headers["preference-applied"]) == (201, applied)


async def test_without_a_preference_the_wait_ends_by_itself(sqlite_url: str) -> None:
    async with running(sqlite_url, wait_default_s=0.02) as service:
        gate = Gate()
        service.participants.script("/card/try", [gate])
        answer = await service.begin({"branches": [{"name": "card", "endpoints": endpoints("card")}]})
        assert answer.status_code == 202
        gate.open()


async def test_parallel_sends_every_try_at_once(service: Service) -> None:
    first, second = Gate(), Gate()
    service.participants.script("/inventory/try", [first])
    service.participants.script("/payment/try", [second])
    answering = asyncio.create_task(service.begin(ORDER))
    await first.reached()
    await second.reached()
    first.open()
    second.open()
    assert (await answering).status_code == 201


async def test_sequential_sends_a_try_when_the_one_before_holds(service: Service) -> None:
    first = Gate()
    service.participants.script("/inventory/try", [lost(), reply(503), first])
    answering = asyncio.create_task(service.begin(ORDER | {"try_order": "sequential"}))
    await first.reached()
    assert service.participants.paths() == ["/inventory/try"] * 3
    first.open()
    body = (await answering).json()
    assert body["try_order"] == "sequential"
    assert body["outcome"] == "confirmed"
    assert service.participants.paths()[:4] == ["/inventory/try"] * 3 + ["/payment/try"]


async def test_sequential_calls_nobody_behind_a_refusal(service: Service) -> None:
    service.participants.script("/inventory/try", [reply(409, {"detail": "out of stock"})])
    document = check_problem(await service.begin(ORDER | {"try_order": "sequential"}), 409, "transaction-cancelled")
    inventory, card = document["transaction"]["branches"]
    assert (inventory["phase"], card["phase"]) == ("cancelled", "cancelled")
    assert card["attempts"] == {"try": 0, "confirm": 0, "cancel": 0}
    assert service.participants.paths() == ["/inventory/try", "/inventory/cancel"]


async def test_the_deadline_cancels_what_is_not_held(service: Service) -> None:
    service.participants.script("/payment/try", [lost()])
    answer = await service.begin(ORDER | {"timeout_s": 1.0})
    transaction = check_problem(answer, 409, "transaction-cancelled")["transaction"]
    assert (transaction["reason"]["code"], transaction["reason"]["branch"]) == ("timed_out", "card")
    assert {"/inventory/cancel", "/payment/cancel"} <= set(service.participants.paths())
    assert not {"/inventory/confirm", "/payment/confirm"} & set(service.participants.paths())


async def test_a_branch_given_by_urls_may_have_a_time_limit_of_its_own(service: Service) -> None:
    gate = Gate()
    service.participants.script("/slow/try", [gate, reply(200)])
    slow = {"name": "slow", "endpoints": endpoints("slow"), "call_timeout_s": 0.02}
    card = {"name": "card", "endpoints": endpoints("card")}
    body = (await service.begin({"branches": [slow, card]}, idempotency_key='"k"')).json()
    assert [branch["call_timeout_s"] for branch in body["branches"]] == [0.02, None]
    assert await service.get(body["id"]) == body
    calls = (await service.json(f"/v1/transactions/{body['id']}/calls"))["items"]
    assert [call["error"] for call in calls if call["branch"] == "slow"] == ["no answer within 0.02 s", None, None]
    other = await service.begin({"branches": [slow | {"call_timeout_s": 0.03}, card]}, idempotency_key='"k"')
    check_problem(other, 409, "idempotency-key-conflict")


async def test_a_branch_given_by_urls_is_called_there(service: Service) -> None:
    branch = {"name": "card", "endpoints": {op: f"http://127.0.0.1:9000/{op}ing?shop=1" for op in endpoints("card")}}
    body = (await service.begin({"branches": [branch]})).json()
    assert [each.url for each in service.participants.received] == [
        "http://127.0.0.1:9000/trying?shop=1",
        "http://127.0.0.1:9000/confirming?shop=1",
    ]
    assert body["branches"][0]["participant"] is None
    assert body["branches"][0]["endpoints"] == branch["endpoints"]


async def test_the_same_participant_may_have_several_branches(service: Service) -> None:
    branches = [{"name": name, "participant": "inventory", "payload": name} for name in ("a", "b")]
    body = (await service.begin({"branches": branches})).json()
    assert [(b["name"], b["payload"], b["phase"]) for b in body["branches"]] == [
        ("a", "a", "confirmed"),
        ("b", "b", "confirmed"),
    ]


@pytest.mark.parametrize(
    "payload", [None, 0, False, "", [], {}, "é 😀 \u0000", 1.5, 10**300, {"a": [None, {"b": -0.5}]}]
)
async def test_any_json_is_a_payload_and_a_result(service: Service, payload: Any) -> None:
    service.participants.script("/inventory/try", [reply(200, [payload])])
    body = (await service.begin({"branches": [{"participant": "inventory", "payload": payload}]})).json()
    assert body["branches"][0]["payload"] == payload
    assert body["branches"][0]["result"] == [payload]
    tried, confirmed = service.participants.received
    assert tried.body["payload"] == confirmed.body["payload"] == payload
    assert confirmed.body["result"] == [payload]
    service.parts.coordinator.runs._runs.clear()
    assert await service.get(body["id"]) == body


async def test_no_database_connection_is_held_while_a_participant_is_called(service: Service) -> None:
    gates = {path: Gate() for path in ("/inventory/try", "/inventory/confirm")}
    for path, gate in gates.items():
        service.participants.script(path, [gate])
    pool = service.parts.journal.engine.pool
    assert isinstance(pool, QueuePool)
    answering = asyncio.create_task(service.begin({"branches": [{"participant": "inventory"}]}))

    async def nothing_checked_out() -> bool:
        return pool.checkedout() == 0

    for gate in gates.values():
        await gate.reached()
        await until(nothing_checked_out)  # others, such as recovery, may look something up meanwhile
        gate.open()
    assert (await answering).status_code == 201


async def test_too_much_under_way_is_503_and_nothing_recorded(sqlite_url: str) -> None:
    async with running(sqlite_url, inflight_max=1) as service:
        await service.register("inventory")
        gate = Gate()
        service.participants.script("/inventory/try", [gate])
        request = {"branches": [{"participant": "inventory"}], "answer_at": "record"}
        first = await service.begin(request)
        rows = await service.rows()
        answer = await service.begin(request)
        check_problem(answer, 503, "overloaded")
        assert int(answer.headers["retry-after"]) >= 1
        assert await service.rows() == rows
        gate.open()
        await service.until_finished(first.json()["id"])
        assert (await service.begin(request)).status_code == 202
