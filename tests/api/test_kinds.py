"""Branches of every kind in one transaction (docs/reference/patterns.md): order, results, pivots, compensations."""

import asyncio
import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any, Final

import pytest

from app.protocol.kinds import OPERATIONS
from holdfast.wire import Kind
from tests.harness.coordinator_app import Gate, Json, Service, base_url, check_problem, lost, reply, running

REFUSES: Final = reply(409, {"type": "/problems/refused", "detail": "no"}, content_type="application/problem+json")
NAMES: Final = ("orders", "stock", "payment", "mail")


@pytest.fixture
async def service(sqlite_url: str) -> AsyncIterator[Service]:
    async with running(sqlite_url, hung_attempts=2, hung_after_s=0.01) as service:
        await service.register(*NAMES)
        yield service


def branch(name: str, kind: str, participant: str | None = None, **members: Any) -> Json:
    return {"name": name, "kind": kind, "participant": participant or name} | members


SAGA: Final = {
    "try_order": "sequential",
    "undo": "reverse",
    "branches": [
        branch("create-order", "compensable", "orders"),
        branch("reserve", "compensable", "stock"),
        branch("charge", "pivot", "payment"),
        branch("confirm-order", "retryable", "orders"),
        branch("send-mail", "retryable", "mail"),
    ],
}
FORWARD: Final = ["/orders/action", "/stock/action", "/payment/action", "/orders/action", "/mail/action"]


def phases(transaction: Json) -> list[str]:
    return [branch["phase"] for branch in transaction["branches"]]


async def test_a_saga_goes_forward_step_by_step(service: Service) -> None:
    answer = await service.begin(SAGA)
    assert answer.status_code == 201, answer.text
    body = answer.json()
    assert service.participants.paths() == FORWARD
    assert phases(body) == ["confirmed"] * 5
    assert [branch["kind"] for branch in body["branches"]] == [branch["kind"] for branch in SAGA["branches"]]  # type: ignore[index]
    assert body["undo"] == "reverse"
    assert body["branches"][0]["attempts"] == {"action": 1, "compensation": 0}
    assert body["branches"][2]["attempts"] == {"action": 1, "cancel": 0}
    assert body["branches"][4]["attempts"] == {"action": 1}
    assert await service.get(body["id"]) == body
    calls = (await service.json(f"/v1/transactions/{body['id']}/calls"))["items"]
    assert {call["operation"] for call in calls} == {"action"}
    sent = service.participants.received[0].body
    assert (sent["kind"], sent["operation"], sent["hold_ttl_s"]) == ("compensable", "action", None)
    assert sent["coordinator_id"] == service.parts.coordinator_id
    assert "results" not in sent


@pytest.mark.parametrize("refusing", range(3))
async def test_what_was_done_is_compensated_in_reverse(service: Service, refusing: int) -> None:
    service.participants.script(FORWARD[refusing], [REFUSES])
    document = check_problem(await service.begin(SAGA), 409, "transaction-cancelled")
    undone = ["/orders/compensation", "/stock/compensation"][: refusing + 1]
    assert service.participants.paths() == FORWARD[: refusing + 1] + undone[::-1]
    transaction = document["transaction"]
    assert phases(transaction) == ["cancelled"] * 5
    assert (transaction["reason"]["code"], transaction["reason"]["detail"]) == ("refused", "no")


async def test_a_compensation_waits_for_the_one_before_it_while_its_service_is_down(service: Service) -> None:
    back = Gate()
    service.participants.script("/payment/action", [REFUSES])
    service.participants.script("/stock/compensation", [lost(), reply(503), back])
    begun = (await service.begin(SAGA, prefer="respond-async")).json()
    await back.reached()
    seen = await service.until(begun["id"], lambda t: t["branches"][1]["hung_reason"])
    assert "/orders/compensation" not in service.participants.paths()
    assert seen["branches"][1]["hung_reason"] == "compensation_unanswered"
    assert seen["branches"][0]["hung_reason"] is None, "what waits for its turn is not hung"
    back.open()
    assert phases(await service.until_finished(begun["id"])) == ["cancelled"] * 5
    assert service.participants.paths()[-1] == "/orders/compensation"


async def test_without_an_order_to_undo_compensations_leave_together(service: Service) -> None:
    stock, orders = Gate(), Gate()
    service.participants.script("/payment/action", [REFUSES])
    service.participants.script("/stock/compensation", [stock])
    service.participants.script("/orders/compensation", [orders])
    begun = (await service.begin(SAGA | {"undo": "parallel"}, prefer="respond-async")).json()
    await stock.reached()
    await orders.reached()
    stock.open()
    orders.open()
    assert phases(await service.until_finished(begun["id"])) == ["cancelled"] * 5


async def test_an_action_that_was_not_answered_is_compensated_without_a_result(service: Service) -> None:
    service.participants.script("/stock/action", [lost()])
    request = SAGA | {"timeout_s": 0.2}
    check_problem(await service.begin(request), 409, "transaction-cancelled")
    (undoing,) = service.participants.at("/stock/compensation")
    assert undoing.body["result"] is None
    assert "held" not in undoing.body
    (created,) = service.participants.at("/orders/compensation")
    assert (created.body["held"], created.body["kind"]) == (True, "compensable")
    assert service.participants.at("/payment/action") == []


async def test_kinds_mix(service: Service) -> None:
    request = {
        "branches": [
            branch("seats", "tcc", "orders"),
            branch("hotel", "compensable", "stock"),
            branch("charge", "pivot", "payment"),
            branch("mail", "retryable"),
        ]
    }
    body = (await service.begin(request)).json()
    paths = service.participants.paths()
    assert sorted(paths[:2]) == ["/orders/try", "/stock/action"]
    assert paths[2] == "/payment/action"
    assert sorted(paths[3:]) == ["/mail/action", "/orders/confirm"]
    assert phases(body) == ["confirmed"] * 4


async def test_a_graph_gets_results_and_runs_at_the_same_time_what_may(service: Service) -> None:
    left, right = Gate(reply(200, {"left": 1.10})), Gate(reply(200, {"right": 2}))
    service.participants.script("/stock/action", [left])
    service.participants.script("/payment/action", [right])
    request = {
        "branches": [
            branch("order", "compensable", "orders"),
            branch("left", "compensable", "stock", after=["order"]),
            branch("right", "compensable", "payment", after=["order"]),
            branch("mail", "retryable", after=["left", "right"]),
        ]
    }
    service.participants.script(
        "/orders/action", [reply(200, '{"id": 1234567890123456.78}', content_type="application/json")]
    )
    answering = asyncio.create_task(service.begin(request))
    await left.reached()
    await right.reached()
    right.open()
    left.open()
    body = (await answering).json()
    assert body["outcome"] == "confirmed"
    (mailed,) = service.participants.at("/mail/action")
    assert mailed.body["results"] == {"left": {"left": 1.10}, "right": {"right": 2}}
    (given,) = service.participants.at("/stock/action")
    assert b'"results":{"order":{"id": 1234567890123456.78}}' in given.content
    assert [each["after"] for each in body["branches"]] == [[], ["order"], ["order"], ["left", "right"]]


async def test_results_are_no_part_of_what_an_idempotency_key_compares_and_order_is(service: Service) -> None:
    request = {"branches": [branch("order", "compensable", "orders"), branch("mail", "retryable", after=["order"])]}
    first = await service.begin(request, idempotency_key='"k"')
    again = await service.begin(json.loads(json.dumps(request)), idempotency_key='"k"')
    assert first.json()["id"] == again.json()["id"]
    plain = {"branches": [request["branches"][0], branch("mail", "retryable")]}
    check_problem(await service.begin(plain, idempotency_key='"k"'), 409, "idempotency-key-conflict")


async def test_a_result_that_a_successors_message_cannot_carry_cancels(sqlite_url: str) -> None:
    async with running(sqlite_url, body_max_bytes=2048) as service:
        await service.register(*NAMES)
        service.participants.script(
            "/orders/action", [reply(200, json.dumps("x" * 1500), content_type="application/json")]
        )
        service.participants.script(
            "/stock/action", [reply(200, json.dumps("y" * 1000), content_type="application/json")]
        )
        request = {
            "branches": [
                branch("order", "compensable", "orders"),
                branch("stock", "compensable"),
                branch("pay", "compensable", "payment", after=["order", "stock"]),
            ]
        }
        transaction = check_problem(await service.begin(request), 409, "transaction-cancelled")["transaction"]
        assert transaction["reason"]["code"] == "result_too_long"
        assert "pay" in transaction["reason"]["detail"]
        assert service.participants.at("/payment/action") == []


async def test_a_pivots_result_that_is_too_long_is_sent_as_null_and_told(sqlite_url: str) -> None:
    async with running(sqlite_url, body_max_bytes=2048) as service:
        await service.register(*NAMES)
        service.participants.script(
            "/payment/action", [reply(200, json.dumps("x" * 3000), content_type="application/json")]
        )
        request = {"branches": [branch("pay", "pivot", "payment"), branch("mail", "retryable", after=["pay"])]}
        body = (await service.begin(request)).json()
        assert body["outcome"] == "confirmed"
        assert service.participants.at("/mail/action")[0].body["results"] == {"pay": None}
        assert "HOLDFAST_BODY_MAX_BYTES" in body["branches"][0]["last_error"]


async def test_a_check_is_asked_and_never_undone(service: Service) -> None:
    service.participants.script("/payment/action", [REFUSES])
    request = {"branches": [branch("stock", "check"), branch("pay", "compensable", "payment", after=["stock"])]}
    check_problem(await service.begin(request), 409, "transaction-cancelled")
    assert service.participants.paths() == ["/stock/action", "/payment/action", "/payment/compensation"]


async def test_a_4xx_of_a_retryable_step_is_repeated_and_hangs(service: Service) -> None:
    works = Gate()
    service.participants.script("/mail/action", [REFUSES, REFUSES, works])
    begun = (await service.begin({"branches": [branch("mail", "retryable")]}, prefer="respond-async")).json()
    hung = await service.until(begun["id"], lambda t: t["hung"])
    assert hung["hung_reason"] == "action_refused"
    await works.reached()
    works.open()
    assert (await service.until_finished(begun["id"]))["outcome"] == "confirmed"


# --- pivots -----------------------------------------------------------------------------------------------------------

PIVOT: Final = {"timeout_s": 0.3, "branches": [branch("seats", "tcc", "orders"), branch("charge", "pivot", "payment")]}


async def test_a_pivot_that_is_not_answered_is_withdrawn_past_the_deadline(service: Service) -> None:
    service.participants.script("/payment/action", [lost()])
    service.participants.script("/payment/cancel", [lost(), reply(500), reply(404, {"detail": "which?"}), reply(200)])
    transaction = check_problem(await service.begin(PIVOT), 409, "transaction-cancelled")["transaction"]
    assert (transaction["reason"]["code"], transaction["reason"]["branch"]) == ("timed_out", "charge")
    paths = service.participants.paths()
    assert paths[-1] == "/orders/cancel"
    first = paths.index("/payment/cancel")
    assert "/payment/action" not in paths[first:]


async def test_a_pivot_that_was_done_already_confirms_past_the_deadline(service: Service) -> None:
    done = {"type": "/problems/already-done", "detail": "done", "result": {"charge": 1.10}}
    service.participants.script("/payment/action", [lost()])
    service.participants.script("/payment/cancel", [reply(409, done, content_type="application/problem+json")])
    body = (await service.begin(PIVOT)).json()
    assert body["outcome"] == "confirmed"
    charge = body["branches"][1]
    assert (charge["result"], charge["last_error"], charge["phase"]) == ({"charge": 1.10}, None, "confirmed")


@pytest.mark.parametrize("given_by", ["urls", "a router that knows no cancel"])
async def test_a_pivot_without_cancel_is_repeated_for_ever(service: Service, given_by: str) -> None:
    back = Gate()
    charge, at = branch("charge", "pivot", "payment"), "/payment/action"
    if given_by == "urls":
        at = "/till/action"
        charge = {"name": "charge", "kind": "pivot", "endpoints": {"action": f"{base_url('till')}/action"}}
    else:
        service.participants.script("/payment/cancel", [reply(404, "Not Found", content_type="text/plain")])
    service.participants.script(at, [lost()])
    begun = (await service.begin(PIVOT | {"branches": [charge]}, prefer="respond-async")).json()
    await service.until(begun["id"], lambda t: t["branches"][0]["hung_reason"] == "pivot_unanswered")
    if given_by == "urls":
        await service.until(begun["id"], lambda t: datetime.fromisoformat(t["deadline"]) < datetime.now(UTC))
    else:
        await service.until(begun["id"], lambda t: t["branches"][0]["attempts"]["cancel"])
    service.participants.script(at, [back])
    await back.reached()
    back.open()
    body = await service.until_finished(begun["id"])
    assert body["outcome"] == "confirmed"
    assert body["branches"][0].get("attempts", {}).get("cancel") == (0 if given_by == "urls" else 1)


async def test_nobody_cancels_once_the_pivot_was_sent(service: Service) -> None:
    gate = Gate()
    service.participants.script("/payment/action", [gate])
    begun = (await service.begin(PIVOT, prefer="respond-async")).json()
    await gate.reached()
    refused = await service.client.post(f"/v1/transactions/{begun['id']}/cancel")
    document = check_problem(refused, 409, "pivot-sent")
    assert document["transaction"]["decision"] == "undecided"
    asked = await service.json(f"/v1/transactions/{begun['id']}/decision", branch="seats")
    assert (asked["decision"], asked["finished"]) == ("undecided", False)
    gate.open()
    assert (await service.until_finished(begun["id"]))["outcome"] == "confirmed"


@pytest.mark.parametrize("media_type", ["application/json", "text/html"])
async def test_only_a_problem_document_refuses_a_pivot(service: Service, media_type: str) -> None:
    service.participants.script(
        "/payment/action", [reply(402, '{"detail": "no money"}', content_type=media_type), reply(200)]
    )
    body = (await service.begin(PIVOT)).json()
    assert body["outcome"] == "confirmed"
    calls = (await service.json(f"/v1/transactions/{body['id']}/calls"))["items"]
    (unclear, _) = [call for call in calls if call["branch"] == "charge"]
    assert (unclear["answer"], "problem+json" in unclear["error"]) == ("unanswered", True)


@pytest.mark.parametrize("settled", ["confirmed", "cancelled"])
async def test_a_person_may_say_what_a_sent_pivot_did(service: Service, settled: str) -> None:
    service.participants.script("/payment/action", [lost()])
    service.participants.script("/payment/cancel", [lost()])
    begun = (await service.begin(PIVOT, prefer="respond-async")).json()
    await service.until(begun["id"], lambda t: t["hung_reason"] == "pivot_unanswered")
    at = f"/v1/admin/transactions/{begun['id']}/branches"
    check_problem(
        await service.client.post(f"{at}/seats/resolve", json={"as": settled, "reason": "seen"}), 409, "not-decided"
    )
    resolved = await service.client.post(f"{at}/charge/resolve", json={"as": settled, "reason": "seen at the bank"})
    assert resolved.status_code == 200, resolved.text
    body = await service.until_finished(begun["id"])
    assert body["outcome"] == settled
    assert (body["reason"]["code"], body["reason"]["detail"]) == ("operator", "seen at the bank")


async def test_a_late_answer_that_contradicts_the_person_makes_it_mixed(service: Service) -> None:
    gate = Gate()
    service.participants.script("/payment/action", [gate])
    begun = (await service.begin(PIVOT, prefer="respond-async")).json()
    await gate.reached()
    at = f"/v1/admin/transactions/{begun['id']}/branches/charge/resolve"
    assert (await service.client.post(at, json={"as": "cancelled", "reason": "seen"})).status_code == 200
    assert (await service.get(begun["id"]))["finished_at"] is None, "its answer is waited for"
    gate.open()
    body = await service.until_finished(begun["id"])
    assert (body["outcome"], body["phase"]) == ("mixed", "cancelled")
    listed = await service.json("/v1/transactions", outcome="mixed")
    assert [item["id"] for item in listed["items"]] == [begun["id"]]


async def test_a_pivot_leaves_only_while_all_holds_outlast_its_call(service: Service) -> None:
    """The seats hold for two seconds, and the charge may take ten."""
    service.participants.script("/orders/try", [reply(200, {}, tcc_hold_ttl="2")])
    transaction = check_problem(await service.begin(PIVOT | {"timeout_s": 30}), 409, "transaction-cancelled")[
        "transaction"
    ]
    assert (transaction["reason"]["code"], transaction["reason"]["branch"]) == ("hold_expired", "seats")
    assert service.participants.at("/payment/action") == []
    await service.register("payment", call_timeout_s=1)
    assert (await service.begin(PIVOT | {"timeout_s": 30})).json()["outcome"] == "confirmed"


# --- what is not allowed ----------------------------------------------------------------------------------------------


def of(*branches: Json, **members: Any) -> Json:
    return {"branches": list(branches)} | members


A, B = branch("a", "compensable", "orders"), branch("b", "compensable", "stock")
PAY, MAIL = branch("pay", "pivot", "payment"), branch("mail", "retryable")
WRONG: Final = {
    "a cycle of one": (of(A | {"after": ["a"]}), "a after a"),
    "a cycle of two": (of(A | {"after": ["b"]}, B | {"after": ["a"]}), "after a"),
    "a name that isn't there": (of(A | {"after": ["zoo"]}), "zoo"),
    "a name twice": (of(A, B | {"after": ["a", "a"]}), "twice"),
    "two pivots": (of(PAY, PAY | {"name": "more"}), "more"),
    "a compensable one after the pivot": (of(PAY, A | {"after": ["pay"]}), "branch a"),
    "a check after a retryable one": (of(MAIL, A | {"kind": "check", "after": ["mail"]}), "branch a"),
    "the pivot after a retryable one": (of(MAIL, PAY | {"after": ["mail"]}), "branch pay"),
    "after with sequential": (of(A, B | {"after": ["a"]}, try_order="sequential"), "sequential"),
    "sequential, a retryable one first": (of(MAIL, A, try_order="sequential"), "branch a"),
    "sequential, the pivot first": (of(PAY, A, try_order="sequential"), "branch a"),
    "sequential, the pivot after a retryable one": (of(MAIL, PAY, try_order="sequential"), "branch pay"),
    "an unknown kind": (of(A | {"kind": "magic"}), "kind"),
    "an unknown way to undo": (of(A, undo="maybe"), "undo"),
    "a compensable one with a try": (
        of({"name": "a", "kind": "compensable", "endpoints": {"try": "http://127.0.0.1:9000/x"}}),
        "branch a",
    ),
    "a pivot without an action": (
        of({"name": "a", "kind": "pivot", "endpoints": {"cancel": "http://127.0.0.1:9000/x"}}),
        "action is missing",
    ),
    "a retryable one with a cancel": (
        of(
            {
                "name": "a",
                "kind": "retryable",
                "endpoints": dict.fromkeys(("action", "cancel"), "http://127.0.0.1:9000/x"),
            }
        ),
        "cancel isn't one of them",
    ),
}


@pytest.mark.parametrize(("request_", "named"), WRONG.values(), ids=WRONG.keys())
async def test_what_cannot_be_is_refused_and_nothing_recorded(service: Service, request_: Json, named: str) -> None:
    document = check_problem(await service.begin(request_), 422, "invalid")
    assert named in json.dumps(document)
    assert set((await service.rows()).values()) == {0}
    assert service.participants.received == []


@pytest.mark.parametrize("kind", [*Kind])
async def test_a_participant_that_says_its_kinds_is_asked_for_no_other(service: Service, kind: Kind) -> None:
    await service.register("orders", kinds=["tcc", "pivot"])
    answer = await service.begin(of(branch("a", kind, "orders")))
    if kind in ("tcc", "pivot"):
        assert answer.status_code == 201
        return
    document = check_problem(answer, 422, "wrong-kind")
    assert (document["branch"], "pivot and tcc" in document["detail"]) == ("a", True)
    assert set((await service.rows()).values()) == {0}


@pytest.mark.parametrize("kind", [*Kind])
async def test_inline_endpoints_are_called_at_their_own_urls(service: Service, kind: Kind) -> None:
    urls = {operation: f"http://127.0.0.1:9000/{operation}-it" for operation in OPERATIONS[kind]}
    body = (await service.begin(of({"name": "a", "kind": kind, "endpoints": urls}))).json()
    assert body["branches"][0]["endpoints"] == urls
    assert set(service.participants.paths()) <= {f"/{operation}-it" for operation in OPERATIONS[kind]}
    assert service.participants.paths()
