"""/v1/admin: what hangs, trying again, and resolving by hand."""

from datetime import datetime
from typing import Any, Final

import pytest

from tests.api.test_lists import cursor, pages
from tests.harness.coordinator_app import Gate, Json, Service, check_problem, endpoints, lost, reply

HUNG: Final = "/v1/admin/hung"


async def hang(service: Service, participant: str, *, name: str | None = None) -> str:
    """Begin a transaction that hangs, confirmed by decision; the participant's Confirm must be scripted to fail."""
    request = {"name": name, "branches": [{"participant": participant}], "answer_at": "decision"}
    transaction_id: str = (await service.begin(request)).json()["id"]
    await service.until(transaction_id, lambda transaction: transaction["hung"])
    return transaction_id


async def test_nothing_hangs(service: Service) -> None:
    assert await service.json(HUNG) == {"items": [], "next_cursor": None, "totals": []}


async def test_a_refused_confirm_hangs_at_once_and_is_repeated(service: Service) -> None:
    service.participants.script("/payment/confirm", [reply(409, {"detail": "nothing held"})])
    transaction_id = await hang(service, "payment", name="order")
    await service.until(transaction_id, lambda transaction: transaction["branches"][0]["attempts"]["confirm"] >= 3)
    page = await service.json(HUNG)
    (item,) = page["items"]
    assert item["id"] == transaction_id
    assert (item["hung"], item["hung_reason"], item["phase"]) == (True, "confirm_refused", "confirming")
    assert datetime.fromisoformat(item["decided_at"]) <= datetime.fromisoformat(item["hung_since"])
    (branch,) = item["branches"]
    assert "nothing held" in branch["last_error"]
    assert branch["attempts"]["confirm"] >= 1
    assert page["totals"] == [{"participant": "payment", "reason": "confirm_refused", "count": 1}]
    service.participants.script("/payment/confirm", [reply(200)])
    finished = await service.until_finished(transaction_id)
    assert (finished["outcome"], finished["hung"], finished["hung_reason"]) == ("confirmed", False, None)
    assert await service.json(HUNG) == {"items": [], "next_cursor": None, "totals": []}


@pytest.mark.parametrize("status", [404, 410, 400, 409, 422])
@pytest.mark.parametrize("operation", ["confirm", "cancel"])
async def test_forgetting_is_no_success(service: Service, operation: str, status: int) -> None:
    service.participants.script(f"/payment/{operation}", [reply(status, "gone")])
    service.participants.script("/inventory/try", [reply(200 if operation == "confirm" else 409)])
    request = {"branches": [{"participant": "payment"}, {"participant": "inventory"}], "answer_at": "decision"}
    body = (await service.begin(request)).json()
    transaction_id = body.get("transaction", body)["id"]
    hung = await service.until(transaction_id, lambda transaction: transaction["hung"])
    assert hung["hung_reason"] == f"{operation}_refused"
    service.participants.script(f"/payment/{operation}", [reply(204)])
    finished = await service.until_finished(transaction_id)
    assert finished["phase"] == {"confirm": "confirmed", "cancel": "cancelled"}[operation]


async def test_silence_hangs_after_so_many_attempts(service: Service) -> None:
    service.participants.script("/payment/confirm", [lost()])
    transaction_id = await hang(service, "payment")
    (item,) = (await service.json(HUNG))["items"]
    assert item["id"] == transaction_id
    assert item["hung_reason"] == "confirm_unanswered"
    assert item["branches"][0]["attempts"]["confirm"] >= 5
    assert "ConnectError" in item["branches"][0]["last_error"]


async def test_filters_totals_and_pages(service: Service) -> None:
    for participant in ("inventory", "payment"):
        service.participants.script(f"/{participant}/confirm", [reply(409, "no")])
    service.participants.script("/card/confirm", [reply(410)])
    ids = [await hang(service, ("inventory", "payment")[n % 2], name="odd" if n % 2 else "even") for n in range(7)]
    card = {"name": "card", "endpoints": endpoints("card")}
    card_id = (await service.begin({"branches": [card], "answer_at": "decision"})).json()["id"]
    await service.until(card_id, lambda transaction: transaction["hung"])
    for limit in (1, 3, 8, 500):
        found = await pages(service, HUNG, limit)
        assert [each["id"] for page in found for each in page] == [*ids, card_id]
    assert [each["id"] for each in (await service.json(HUNG, participant="payment"))["items"]] == ids[1::2]
    assert [each["id"] for each in (await service.json(HUNG, name="even"))["items"]] == ids[::2]
    assert (await service.json(HUNG, participant="payment", name="even"))["items"] == []
    everything = (await service.json(HUNG, limit=1))["totals"]
    assert sorted(everything, key=str) == sorted(
        [
            {"participant": None, "reason": "confirm_refused", "count": 1},
            {"participant": "inventory", "reason": "confirm_refused", "count": 4},
            {"participant": "payment", "reason": "confirm_refused", "count": 3},
        ],
        key=str,
    )
    assert (await service.json(HUNG, participant="payment"))["totals"] == [
        {"participant": "payment", "reason": "confirm_refused", "count": 3}
    ]
    assert (await service.json(HUNG, name="even"))["totals"] == [
        {"participant": "inventory", "reason": "confirm_refused", "count": 4}
    ]
    assert len((await service.json(HUNG, older_than_s=0))["items"]) == 8
    assert await service.json(HUNG, older_than_s=3600) == {"items": [], "next_cursor": None, "totals": []}


@pytest.mark.parametrize(
    "query",
    [
        {"older_than_s": "-1"},
        {"older_than_s": "nan"},
        {"older_than_s": "inf"},
        {"older_than_s": "old"},
        {"limit": "0"},
        {"limit": "501"},
        {"participant": "no such!"},
        {"name": ""},
        {"cursor": "x"},
        {"cursor": cursor("01a1fc2e-20e8-7db5-893d-508caa6c9bfb")},
        {"cursor": cursor(1, "01a1fc2e-20e8-7db5-893d-508caa6c9bfb")},
        {"cursor": "W0luZmluaXR5LCAiMDFhMWZjMmUtMjBlOC03ZGI1LTg5M2QtNTA4Y2FhNmM5YmZiIl0"},
        {"phase": "confirming"},
    ],
)
async def test_a_bad_filter_is_422(service: Service, query: dict[str, str]) -> None:
    check_problem(await service.client.get(HUNG, params=query), 422, "invalid")


async def test_older_than_anything_is_empty(service: Service) -> None:
    assert (await service.json(HUNG, older_than_s=1e300))["items"] == []


async def test_retry_calls_at_once(service: Service) -> None:
    service.participants.script("/payment/confirm", [reply(503, retry_after="3600"), reply(200)])
    request = {"branches": [{"participant": "payment"}], "answer_at": "decision"}
    transaction_id = (await service.begin(request)).json()["id"]
    waiting = await service.until(transaction_id, lambda transaction: transaction["next_attempt_at"])
    decided_at = datetime.fromisoformat(waiting["decided_at"])
    assert 3590 < (datetime.fromisoformat(waiting["next_attempt_at"]) - decided_at).total_seconds() < 3610
    assert waiting["branches"][0]["next_attempt_at"] == waiting["next_attempt_at"]
    answer = await service.client.post(f"/v1/admin/transactions/{transaction_id}/retry")
    assert answer.status_code == 202
    assert answer.json()["id"] == transaction_id
    finished = await service.until_finished(transaction_id)
    assert finished["branches"][0]["attempts"]["confirm"] == 2
    answer = await service.client.post(f"/v1/admin/transactions/{transaction_id}/retry")
    assert check_problem(answer, 409, "already-finished")["transaction"] == finished


async def test_retry_of_an_undecided_transaction(service: Service) -> None:
    service.participants.script("/payment/try", [reply(429, retry_after="20"), reply(200)])
    begun = await service.begin({"branches": [{"participant": "payment"}], "answer_at": "record"})
    transaction_id = begun.json()["id"]
    await service.until(transaction_id, lambda transaction: transaction["next_attempt_at"])
    assert (await service.client.post(f"/v1/admin/transactions/{transaction_id}/retry")).status_code == 202
    assert (await service.until_finished(transaction_id))["outcome"] == "confirmed"


def resolving(transaction_id: str, branch: str = "payment") -> str:
    return f"/v1/admin/transactions/{transaction_id}/branches/{branch}/resolve"


@pytest.mark.parametrize(("settled", "outcome"), [("confirmed", "confirmed"), ("cancelled", "mixed")])
async def test_resolve_says_who_when_and_why(service: Service, settled: str, outcome: str) -> None:
    service.participants.script("/payment/confirm", [reply(410)])
    transaction_id = await hang(service, "payment")
    body = {"as": settled, "reason": "seen in the bank's books"}
    answer = await service.client.post(resolving(transaction_id), json=body)
    assert answer.status_code == 200
    transaction = answer.json()
    assert (transaction["phase"], transaction["outcome"]) == ("confirmed", outcome)
    assert (transaction["hung"], transaction["decision"]) == (False, "confirm")
    assert transaction["reason"] == {"code": "operator", "branch": "payment", "detail": body["reason"]}
    (branch,) = transaction["branches"]
    assert branch["phase"] == "resolved"
    resolution = branch["resolution"]
    assert resolution.keys() == {"as", "by", "at", "reason"}
    assert (resolution["as"], resolution["reason"]) == (settled, body["reason"])
    assert "127.0.0.1" in resolution["by"]
    assert resolution["at"] == transaction["finished_at"]
    assert await service.get(transaction_id) == transaction
    answer = await service.client.post(resolving(transaction_id), json=body)
    assert check_problem(answer, 409, "branch-finished")["transaction"] == transaction
    assert (await service.json(HUNG))["totals"] == []


async def test_a_client_that_waits_is_not_told_success_when_a_person_went_against_it(service: Service) -> None:
    service.participants.script("/payment/confirm", [reply(410)])
    request = {"branches": [{"participant": "payment"}, {"participant": "inventory"}]}
    begun = await service.begin(request | {"answer_at": "decision"}, idempotency_key='"k"')
    transaction_id = begun.json()["id"]
    await service.until(transaction_id, lambda transaction: transaction["hung"])
    resolved = await service.client.post(resolving(transaction_id), json={"as": "cancelled", "reason": "refunded"})
    assert resolved.json()["outcome"] == "mixed"
    again = await service.begin(request | {"answer_at": "decision"}, idempotency_key='"k"')
    assert check_problem(again, 409, "transaction-mixed")["transaction"]["outcome"] == "mixed"
    assert (await service.json("/v1/transactions", phase="confirmed"))["items"][0]["outcome"] == "mixed"
    assert (await service.json("/v1/transactions", outcome="mixed"))["items"] == [again.json()["transaction"]]
    assert (await service.json("/v1/transactions", outcome="confirmed"))["items"] == []


async def test_resolving_one_branch_leaves_the_others_to_be_called(service: Service) -> None:
    gate = Gate()
    service.participants.script("/payment/confirm", [reply(410)])
    service.participants.script("/inventory/confirm", [gate])
    branches = [{"participant": "payment"}, {"participant": "inventory"}]
    transaction_id = (await service.begin({"branches": branches, "answer_at": "decision"})).json()["id"]
    await service.until(transaction_id, lambda transaction: transaction["hung"])
    answer = await service.client.post(resolving(transaction_id), json={"as": "confirmed", "reason": "seen"})
    assert answer.json()["phase"] == "confirming"
    calls = service.participants.paths().count("/payment/confirm")
    gate.open()
    assert (await service.until_finished(transaction_id))["outcome"] == "confirmed"
    assert service.participants.paths().count("/payment/confirm") == calls


async def test_resolve_is_for_what_is_decided_and_known(service: Service) -> None:
    gate = Gate()
    service.participants.script("/payment/try", [gate])
    begun = await service.begin({"branches": [{"participant": "payment"}], "answer_at": "record"})
    transaction_id = begun.json()["id"]
    body = {"as": "confirmed", "reason": "seen"}
    document = check_problem(await service.client.post(resolving(transaction_id), json=body), 409, "not-decided")
    assert document["transaction"]["decision"] == "undecided"
    for branch in ("shipping", "Payment", "%00", "x" * 100):
        answer = await service.client.post(resolving(transaction_id, branch), json=body)
        check_problem(answer, 404, "unknown-branch")
    gate.open()
    await service.until_finished(transaction_id)
    check_problem(await service.client.post(resolving(transaction_id), json=body), 409, "branch-finished")
    assert (await service.get(transaction_id))["branches"][0]["resolution"] is None


BAD_RESOLUTIONS: Final[list[Any]] = [
    {"as": "confirmed"},
    {"as": "confirmed", "reason": ""},
    {"as": "confirmed", "reason": "   "},
    {"as": "confirmed", "reason": None},
    {"as": "confirmed", "reason": 1},
    {"as": "confirmed", "reason": "x" * 2001},
    {"as": "confirmed", "reason": "a\0b"},
    {"reason": "seen"},
    {"as": "done", "reason": "seen"},
    {"as": "confirmed", "reason": "seen", "by": "somebody else"},
    {"settled": "confirmed", "reason": "seen"},
    {},
    [],
    None,
]


async def test_resolve_without_a_reason_or_a_form_is_422_and_changes_nothing(service: Service) -> None:
    service.participants.script("/payment/confirm", [reply(503, retry_after="3600")])
    begun = await service.begin({"branches": [{"participant": "payment"}], "answer_at": "decision"})
    before = await service.until(begun.json()["id"], lambda transaction: transaction["next_attempt_at"])
    for body in BAD_RESOLUTIONS:
        check_problem(await service.client.post(resolving(before["id"]), json=body), 422, "invalid")
    assert await service.get(before["id"]) == before


async def test_a_reason_may_take_its_room(service: Service) -> None:
    service.participants.script("/payment/confirm", [reply(410)])
    transaction_id = await hang(service, "payment")
    reason = "Called the bank: captured twice, one refunded. " * 20
    body: Json = {"as": "confirmed", "reason": reason}
    answer = await service.client.post(resolving(transaction_id), json=body)
    assert answer.status_code == 200, answer.text
    assert answer.json()["branches"][0]["resolution"]["reason"] == reason.strip()
