"""What participants receive, and what their answers mean: section 4 of docs/reference/protocol.md."""

import re
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any, Final

import pytest

from tests.harness.coordinator_app import Gate, Json, Service, check_problem, lost, reply, running

ONE: Final[Json] = {"branches": [{"participant": "inventory", "payload": {"sku": "A-1", "quantity": 2}}]}
UNANSWERED: Final = (202, 300, 301, 302, 303, 304, 307, 308, 401, 408, 425, 429, 500, 501, 502, 503, 504, 507, 599)
REFUSED: Final = (400, 402, 403, 404, 405, 406, 409, 410, 411, 412, 413, 415, 418, 422, 423, 426, 431, 451, 499)
SUCCEEDED: Final = (200, 201, 203, 204, 205, 206, 207, 226, 299)


async def test_a_call_is_exactly_this(service: Service) -> None:
    service.participants.script("/inventory/try", [lost(), reply(200, {"hold_id": "h-1"})])
    body = (await service.begin(ONE)).json()
    transaction_id = body["id"]
    first, second, confirm = service.participants.received
    assert [each.path for each in (first, second, confirm)] == ["/inventory/try"] * 2 + ["/inventory/confirm"]
    for call, operation, attempt in ((first, "try", 1), (second, "try", 2), (confirm, "confirm", 1)):
        assert call.body | {"hold_ttl_s": 0} == {
            "transaction_id": transaction_id,
            "branch": "inventory",
            "kind": "tcc",
            "operation": operation,
            "attempt": attempt,
            "hold_ttl_s": 0,
            **({"coordinator_id": service.parts.coordinator_id} if operation == "try" else {}),
            "payload": {"sku": "A-1", "quantity": 2},
            "result": {"hold_id": "h-1"} if operation == "confirm" else None,
        }
        assert call.headers["content-type"] == "application/json"
        assert int(call.headers["content-length"]) > 0
        assert call.headers["tcc-transaction-id"] == transaction_id
        assert call.headers["tcc-branch"] == "inventory"
        assert call.headers["tcc-operation"] == operation
        assert call.headers["tcc-attempt"] == str(attempt)
        assert call.headers["idempotency-key"] == f'"{transaction_id}:inventory:{operation}"'
        assert re.fullmatch(r"00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}", call.headers["traceparent"])
        assert "application/json" in call.headers["accept"]
        assert not {"cookie", "authorization"} & set(call.headers)
    assert len({each.headers["traceparent"].split("-")[1] for each in (first, second, confirm)}) == 1
    assert len({each.headers["traceparent"].split("-")[2] for each in (first, second, confirm)}) == 3
    assert confirm.body["hold_ttl_s"] is None
    assert 59 < first.body["hold_ttl_s"] <= 60, "30 s to the deadline, and the margin"
    assert second.body["hold_ttl_s"] < first.body["hold_ttl_s"]


async def test_cancel_carries_the_result_and_no_ttl(service: Service) -> None:
    service.participants.script("/inventory/try", [reply(200, {"hold_id": "h-1"})])
    service.participants.script("/payment/try", [reply(409)])
    request = {"branches": [{"participant": "inventory"}, {"participant": "payment"}], "try_order": "sequential"}
    check_problem(await service.begin(request), 409, "transaction-cancelled")
    (held,) = service.participants.at("/inventory/cancel")
    (refused,) = service.participants.at("/payment/cancel")
    assert (held.body["result"], held.body["hold_ttl_s"], held.body["operation"]) == (
        {"hold_id": "h-1"},
        None,
        "cancel",
    )
    assert (refused.body["result"], refused.body["attempt"]) == (None, 1)
    assert held.body["held"] is True
    assert "held" not in refused.body, "nobody saw it hold, and older participants see the message that they know"
    assert held.headers["idempotency-key"].endswith(':inventory:cancel"')


async def test_the_hold_is_asked_for_to_the_deadline_and_the_margin(sqlite_url: str) -> None:
    async with running(sqlite_url, hold_margin_s=7.0) as service:
        await service.register("inventory")
        await service.begin(ONE | {"timeout_s": 100})
        assert 106 < service.participants.received[0].body["hold_ttl_s"] <= 107


async def test_a_2xx_holds_and_is_done(service: Service) -> None:
    for status in SUCCEEDED:
        for path in ("/inventory/try", "/inventory/confirm"):
            service.participants.script(path, [reply(status)])
        answer = await service.begin(ONE)
        assert answer.status_code == 201, status
        assert answer.json()["branches"][0]["attempts"] == {"try": 1, "confirm": 1, "cancel": 0}, status


async def test_unanswered_is_repeated_on_try_and_on_confirm(service: Service) -> None:
    for status in UNANSWERED:
        elsewhere = reply(status, {"detail": "busy"}, location="http://127.0.0.1:9000/elsewhere", set_cookie="a=b")
        service.participants.script("/inventory/try", [elsewhere, elsewhere, reply(200)])
        service.participants.script("/inventory/confirm", [elsewhere, elsewhere, reply(200)])
        answer = await service.begin(ONE)
        assert answer.status_code == (201 if status == 202 else 202), "only 202 is no failure of a Confirm"
        transaction = await service.until_finished(answer.json()["id"])
        assert transaction["outcome"] == "confirmed", status
        assert transaction["branches"][0]["attempts"] == {"try": 3, "confirm": 3, "cancel": 0}, status
        calls = (await service.json(f"/v1/transactions/{transaction['id']}/calls"))["items"]
        per_operation = [("unanswered", status)] * 2 + [("succeeded", 200)]
        assert [(c["answer"], c["http_status"]) for c in calls] == per_operation * 2
    assert set(service.participants.paths()) == {"/inventory/try", "/inventory/confirm"}
    assert not any("cookie" in each.headers for each in service.participants.received)


@pytest.mark.parametrize(("status", "slug"), [(401, "unauthenticated"), (403, "bad-signature")])
async def test_who_is_turned_away_is_listed_at_the_first_call_and_cancels_nothing(
    service: Service, status: int, slug: str
) -> None:
    refusal = reply(status, {"type": f"/problems/{slug}", "detail": "who are you?"}, retry_after="3600")
    service.participants.script("/inventory/try", [refusal])
    begun = (await service.begin(ONE | {"answer_at": "record"})).json()
    hung = await service.until(begun["id"], lambda transaction: transaction["hung"])
    assert (hung["phase"], hung["decision"], hung["hung_reason"]) == ("trying", "undecided", "unauthorized")
    listed = await service.json("/v1/admin/hung")
    assert [each["id"] for each in listed["items"]] == [begun["id"]]
    assert listed["totals"] == [{"participant": "inventory", "reason": "unauthorized", "count": 1}]
    assert listed["items"][0]["branches"][0]["last_error"] == f"HTTP {status} who are you?"
    service.participants.script("/inventory/try", [reply(200)])
    service.participants.script("/inventory/confirm", [refusal, reply(200)])
    await service.client.post(f"/v1/admin/transactions/{begun['id']}/retry")
    confirming = await service.until(
        begun["id"], lambda transaction: transaction["hung"] and transaction["phase"] == "confirming"
    )
    assert confirming["hung_reason"] == "unauthorized"
    await service.client.post(f"/v1/admin/transactions/{begun['id']}/retry")
    assert (await service.until_finished(begun["id"]))["outcome"] == "confirmed"


async def test_any_other_403_refuses(service: Service) -> None:
    service.participants.script("/inventory/try", [reply(403, {"type": "/problems/forbidden", "detail": "no"})])
    document = check_problem(await service.begin(ONE), 409, "transaction-cancelled")
    assert document["transaction"]["reason"] == {"code": "refused", "branch": "inventory", "detail": "no"}


async def test_any_other_4xx_refuses_a_try_and_is_not_done_on_cancel(service: Service) -> None:
    for status in REFUSED:
        service.participants.script("/inventory/try", [reply(status, {"detail": "no"})])
        service.participants.script("/inventory/cancel", [reply(status, {"detail": "not now"}), reply(200)])
        answer = await service.begin(ONE)
        assert (answer.status_code, answer.json()["phase"]) == (202, "cancelling"), status
        transaction = await service.until_finished(answer.json()["id"])
        assert transaction["reason"] == {"code": "refused", "branch": "inventory", "detail": "no"}, status
        assert transaction["branches"][0]["attempts"] == {"try": 1, "confirm": 0, "cancel": 2}, status


async def test_an_unanswered_try_may_have_held_and_is_cancelled(service: Service) -> None:
    for answer in (lost(), *map(reply, UNANSWERED)):
        service.participants.script("/inventory/try", [answer])
        begun = await service.begin(ONE | {"timeout_s": 0.03})
        transaction = check_problem(begun, 409, "transaction-cancelled")["transaction"]
        assert transaction["reason"]["code"] == "timed_out"
        assert transaction["branches"][0]["attempts"]["cancel"] == 1
    assert "/inventory/confirm" not in service.participants.paths()


@pytest.mark.parametrize("status", [404, 410, 409, 400])
async def test_a_refused_confirm_is_repeated_all_the_same(service: Service, status: int) -> None:
    service.participants.script("/inventory/confirm", [*[reply(status)] * 3, reply(200)])
    begun = await service.begin(ONE)
    assert (begun.status_code, begun.json()["decision"]) == (202, "confirm")
    body = await service.until_finished(begun.json()["id"])
    assert (body["outcome"], body["hung"]) == ("confirmed", False)
    assert body["branches"][0]["attempts"]["confirm"] == 4
    assert "/inventory/cancel" not in service.participants.paths()


@pytest.mark.parametrize(
    ("answer", "detail"),
    [
        (reply(409, {"detail": "out of stock", "title": "t"}), "out of stock"),
        (reply(409, {"detail": "out of stock"}, content_type="application/problem+json"), "out of stock"),
        (reply(409, {"detail": {"code": 7}}), '{"detail":{"code":7}}'),
        (reply(409, {"error": "out of stock"}), '{"error":"out of stock"}'),
        (reply(409, "out of stock"), "out of stock"),
        (reply(409, "<h1>Out\nof\tstock</h1>"), "<h1>Out of stock</h1>"),
        (reply(409, "x" * 3000), "x" * 500),
        (reply(409, {"detail": "é" * 3000}), "é" * 500),
        (reply(409, {"detail": "a\0b"}), "a b"),
        (reply(409), "HTTP 409"),
        (reply(409, {"detail": ""}), "HTTP 409"),
        (reply(409, ["detail"]), '["detail"]'),
    ],
)
async def test_the_detail_of_a_refusal(service: Service, answer: Any, detail: str) -> None:
    service.participants.script("/inventory/try", [answer])
    transaction = check_problem(await service.begin(ONE), 409, "transaction-cancelled")["transaction"]
    assert transaction["reason"]["detail"] == detail


@pytest.mark.parametrize(
    ("answer", "result"),
    [
        (reply(200, "held, thank you"), None),
        (reply(200), None),
        (reply(204), None),
        (reply(200, "NaN"), None),
        (reply(200, '{"a": Infinity}'), None),
        (reply(200, '"\\ud800"'), None),
        (reply(200, "[" * 200 + "]" * 200), None),
        (reply(200, "[" * 99999), None),
        (reply(200, '{"a": 1} {}'), None),
        (reply(200, "null"), None),
        (reply(200, "false"), False),
        (reply(200, "0"), 0),
        (reply(200, '{"a": 1}', content_type="text/html"), {"a": 1}),
    ],
)
async def test_a_2xx_without_json_is_still_a_2xx(sqlite_url: str, answer: Any, result: Any) -> None:
    async with running(sqlite_url, response_max_bytes=200_000) as service:
        await service.register("inventory")
        service.participants.script("/inventory/try", [answer])
        begun = await service.begin(ONE)
        assert begun.status_code == 201
        assert begun.json()["branches"][0]["result"] == result
        assert service.participants.received[1].body["result"] == begun.json()["branches"][0]["result"]
        assert await service.get(begun.json()["id"]) == begun.json()


async def test_a_result_that_is_too_long_cancels(sqlite_url: str) -> None:
    async with running(sqlite_url, response_max_bytes=2000) as service:
        await service.register("inventory")
        fits = '"' + "x" * 1998 + '"'
        service.participants.script("/inventory/try", [reply(200, fits), reply(200, f" {fits}")])
        service.participants.script("/inventory/confirm", [reply(200, f" {fits}")])
        assert (await service.begin(ONE)).json()["branches"][0]["result"] == "x" * 1998
        cancelled = check_problem(await service.begin(ONE), 409, "transaction-cancelled")["transaction"]
        assert (cancelled["reason"]["code"], cancelled["reason"]["branch"]) == ("result_too_long", "inventory")
        assert "2000 bytes" in cancelled["reason"]["detail"]
        assert (cancelled["branches"][0]["attempts"], cancelled["branches"][0]["result"]) == (
            {"try": 1, "confirm": 0, "cancel": 1},
            None,
        )


async def test_the_detail_of_a_refusal_that_is_too_long_is_cut(sqlite_url: str) -> None:
    async with running(sqlite_url, response_max_bytes=2000) as service:
        await service.register("inventory")
        service.participants.script("/inventory/try", [reply(409, "no " * 1000)])
        cancelled = check_problem(await service.begin(ONE), 409, "transaction-cancelled")["transaction"]
        assert (cancelled["reason"]["code"], cancelled["branches"][0]["attempts"]["try"]) == ("refused", 1)
        assert cancelled["reason"]["detail"].startswith("no no")


@pytest.mark.parametrize("ttl", ["0", "-5", "0.01", "0.05", " 0.05 "])
async def test_a_hold_that_is_too_short_cancels(service: Service, ttl: str) -> None:
    gate = Gate()
    service.participants.script("/inventory/try", [reply(200, {}, tcc_hold_ttl=ttl)])
    service.participants.script("/payment/try", [gate])
    request = {"branches": [{"participant": "inventory"}, {"participant": "payment"}], "answer_at": "decision"}
    transaction = check_problem(await service.begin(request), 409, "transaction-cancelled")["transaction"]
    assert (transaction["reason"]["code"], transaction["reason"]["branch"]) == ("hold_expired", "inventory")
    gate.open()
    finished = await service.until_finished(transaction["id"])
    assert finished["outcome"] == "cancelled"
    assert {"/inventory/cancel", "/payment/cancel"} <= set(service.participants.paths())
    assert not {"/inventory/confirm", "/payment/confirm"} & set(service.participants.paths())


@pytest.mark.parametrize("ttl", ["60", "100000000", "soon", "", "nan", "inf", "1e400", "5, 5"])
async def test_a_hold_that_lasts_or_says_nothing_confirms(service: Service, ttl: str) -> None:
    service.participants.script("/inventory/try", [reply(200, {}, tcc_hold_ttl=ttl)])
    assert (await service.begin(ONE)).status_code == 201


async def wait_for_retry_s(service: Service, operation: str) -> float:
    """How long the coordinator means to wait before it asks again, counted from the call's end."""
    begun = await service.begin(ONE | {"timeout_s": 3600, "answer_at": "record"})
    transaction_id = begun.json()["id"]
    waiting = await service.until(transaction_id, lambda transaction: transaction["branches"][0]["next_attempt_at"])
    calls = (await service.json(f"/v1/transactions/{transaction_id}/calls"))["items"]
    assert calls[-1]["operation"] == operation
    started_at = datetime.fromisoformat(calls[-1]["started_at"])
    return (datetime.fromisoformat(waiting["next_attempt_at"]) - started_at).total_seconds()


DATE: Final = datetime(2026, 1, 1, tzinfo=UTC)
IN_TWO_MINUTES: Final = format_datetime(DATE + timedelta(minutes=2), usegmt=True)
NOW: Final = format_datetime(DATE, usegmt=True)


@pytest.mark.parametrize("operation", ["try", "confirm"])
async def test_retry_after_is_honoured(service: Service, operation: str) -> None:
    for status in (202, 408, 425, 429, 500, 503):
        for headers, expected_s in (
            ({"retry_after": "120"}, 120),
            ({"retry_after": IN_TWO_MINUTES, "date": NOW}, 120),
            ({"retry_after": "99999999"}, 3600),
        ):
            service.participants.script(f"/inventory/{operation}", [reply(status, **headers)])
            assert expected_s <= await wait_for_retry_s(service, operation) < expected_s + 5, (status, headers)


@pytest.mark.parametrize(
    "headers",
    [
        {"retry_after": "soon"},
        {"retry_after": "-5"},
        {"retry_after": "nan"},
        {"retry_after": "inf"},
        {"retry_after": ""},
        {"retry_after": IN_TWO_MINUTES},
        {"retry_after": NOW, "date": IN_TWO_MINUTES},
        {"retry_after": IN_TWO_MINUTES, "date": "yesterday"},
        {"retry_after": "Thu, 01 Jan 99999 00:00:00 GMT", "date": NOW},
    ],
)
async def test_a_retry_after_that_makes_no_sense_is_passed_over(service: Service, headers: dict[str, str]) -> None:
    service.participants.script("/inventory/try", [reply(503, **headers), reply(200)])
    assert (await service.begin(ONE)).status_code == 201


async def test_a_slow_or_dead_branch_delays_nobody(service: Service) -> None:
    """Back-off and Retry-After are a branch's own: the refusal of another decides at once."""
    service.participants.script("/payment/try", [reply(503, retry_after="3600")])
    gate = Gate(reply(409, {"detail": "out of stock"}))
    service.participants.script("/inventory/try", [gate])
    begun = await service.begin({"branches": [{"participant": "payment"}, *ONE["branches"]], "answer_at": "record"})
    transaction_id = begun.json()["id"]
    await service.until(transaction_id, lambda transaction: transaction["branches"][0]["next_attempt_at"])
    gate.open()
    finished = await service.until_finished(transaction_id)
    assert finished["reason"]["detail"] == "out of stock"
    assert finished["branches"][0]["attempts"] == {"try": 1, "confirm": 0, "cancel": 1}


async def test_a_cancel_waits_for_the_end_of_the_branchs_own_try(service: Service) -> None:
    gate = Gate(reply(200, {"hold_id": "late"}))
    service.participants.script("/payment/try", [gate])
    service.participants.script("/inventory/try", [reply(409, "no")])
    request = {"branches": [{"participant": "payment"}, {"participant": "inventory"}], "answer_at": "decision"}
    transaction = check_problem(await service.begin(request), 409, "transaction-cancelled")["transaction"]
    await service.until(transaction["id"], lambda transaction: transaction["branches"][1]["phase"] == "cancelled")
    assert "/payment/cancel" not in service.participants.paths()
    gate.open()
    await service.until_finished(transaction["id"])
    (cancel,) = service.participants.at("/payment/cancel")
    assert cancel.body["result"] == {"hold_id": "late"}


async def test_participants_are_called_in_the_initiators_trace(service: Service) -> None:
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00"
    await service.begin(ONE, traceparent=trace)
    received = [call.headers["traceparent"].split("-") for call in service.participants.received]
    assert {(version, trace_id, flags) for version, trace_id, _, flags in received} == {
        ("00", trace.split("-")[1], "00")
    }
    assert len({span for _, _, span, _ in received} | {"b7ad6b7169203331"}) == len(received) + 1


@pytest.mark.parametrize("trace", ["", "garbage", f"00-{'0' * 32}-{'1' * 16}-01", f"ff-{'1' * 32}-{'1' * 16}-01"])
async def test_a_trace_that_is_none_is_passed_over(service: Service, trace: str) -> None:
    begun = await service.begin(ONE, traceparent=trace)
    trace_ids = {call.headers["traceparent"].split("-")[1] for call in service.participants.received}
    assert trace_ids == {begun.json()["id"].replace("-", "")}


@pytest.mark.parametrize(
    ("operation", "error"), [("try", "no stock"), ("confirm", "HTTP 404 no stock"), ("cancel", "HTTP 404 no stock")]
)
async def test_a_refusal_is_quoted_and_after_the_decision_with_its_status(
    service: Service, operation: str, error: str
) -> None:
    service.participants.script(f"/inventory/{operation}", [reply(404, {"detail": "no stock"}), reply(200)])
    if operation == "cancel":
        service.participants.script("/payment/try", [reply(409)])
    begun = await service.begin({"branches": [{"participant": "inventory"}, {"participant": "payment"}]})
    transaction = begun.json().get("transaction") or begun.json()
    calls = (await service.json(f"/v1/transactions/{transaction['id']}/calls"))["items"]
    refused = next(call for call in calls if (call["branch"], call["operation"]) == ("inventory", operation))
    assert (refused["answer"], refused["error"]) == ("refused", error)


@pytest.mark.parametrize(
    "date", ["Mon, 01 Jan 99999999999999999999 00:00:00 GMT", "Mon, 01 Jan 2024 00:00:00 +99999999999999"]
)
async def test_a_date_beyond_all_calendars_is_passed_over(service: Service, date: str) -> None:
    late = reply(503, retry_after=date, date="Mon, 01 Jan 2024 00:00:00 GMT")
    service.participants.script("/inventory/try", [late, reply(200)])
    assert (await service.begin(ONE)).status_code == 201
