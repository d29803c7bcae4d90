"""`resolve` with `send`: the coordinator makes the call that settles a branch against the decision."""

from collections.abc import AsyncIterator
from typing import Final

import pytest

from tests.harness.coordinator_app import Gate, Json, Service, check_problem, lost, reply, running

PROBLEM: Final = "application/problem+json"
STUCK: Final = reply(409, {"type": "/problems/nothing-held", "detail": "gone"}, content_type=PROBLEM)
WANTED: Final = {"reason": "the customer left; ticket OPS-7", "send": True}


@pytest.fixture
async def service(sqlite_url: str) -> AsyncIterator[Service]:
    async with running(sqlite_url, hung_attempts=2, hung_after_s=0.01) as service:
        await service.register("inventory", "payment")
        yield service


async def hung(service: Service, kind: str = "tcc") -> Json:
    """A transaction that is decided, and one of whose branches hangs."""
    request = {"branches": [{"participant": "inventory"}, {"participant": "payment", "kind": kind}]}
    begun = (await service.begin(request, prefer="respond-async")).json()
    return await service.until(begun["id"], lambda t: t["hung"])


async def resolve(service: Service, transaction: Json, **body: object) -> Json:
    at = f"/v1/admin/transactions/{transaction['id']}/branches/payment/resolve"
    answer = await service.client.post(at, json=WANTED | body)
    assert answer.status_code == 200, answer.text
    found: Json = answer.json()
    return found


async def test_a_branch_that_is_not_confirmed_is_cancelled_by_a_call(service: Service) -> None:
    service.participants.script("/payment/confirm", [STUCK])
    service.participants.script("/payment/cancel", [lost(), reply(503), reply(200)])
    transaction = await hung(service)
    asked = await resolve(service, transaction, **{"as": "cancelled"})
    assert asked["branches"][1]["sending"]["as"] == "cancelled"
    assert asked["branches"][1]["sending"]["reason"] == WANTED["reason"]
    body = await service.until_finished(transaction["id"])
    branch = body["branches"][1]
    assert (body["decision"], body["outcome"], branch["phase"], branch["sending"]) == (
        "confirm",
        "mixed",
        "resolved",
        None,
    )
    assert (branch["resolution"]["as"], branch["resolution"]["reason"]) == ("cancelled", WANTED["reason"])
    paths = service.participants.paths()
    first = paths.index("/payment/cancel")
    assert "/payment/confirm" not in paths[first:], "the ordinary call is withheld"
    assert paths.count("/payment/cancel") == 3
    (entry,) = (await service.json("/v1/admin/audit", action="branch.resolve"))["items"]
    assert entry["reason"] == WANTED["reason"]


async def test_a_branch_that_is_not_cancelled_is_confirmed_by_a_call(service: Service) -> None:
    service.participants.script("/inventory/try", [reply(409, {"detail": "none left"})])
    service.participants.script("/payment/cancel", [STUCK])
    transaction = await hung(service)
    await resolve(service, transaction, **{"as": "confirmed"})
    body = await service.until_finished(transaction["id"])
    assert (body["decision"], body["outcome"]) == ("cancel", "mixed")
    assert body["branches"][1]["resolution"]["as"] == "confirmed"


async def test_what_was_done_already_changes_nothing(service: Service) -> None:
    back = Gate()
    done = reply(409, {"type": "/problems/already-confirmed", "detail": "done"}, content_type=PROBLEM)
    service.participants.script("/payment/confirm", [lost(), lost(), back])
    service.participants.script("/payment/cancel", [done])
    transaction = await hung(service)
    await resolve(service, transaction, **{"as": "cancelled"})
    await back.reached()
    seen = await service.get(transaction["id"])
    assert (seen["branches"][1]["phase"], seen["branches"][1]["sending"]) == ("confirming", None)
    back.open()
    body = await service.until_finished(transaction["id"])
    assert (body["outcome"], body["branches"][1]["phase"]) == ("confirmed", "confirmed")
    assert service.participants.paths().count("/payment/cancel") == 1


async def test_silence_is_listed_and_a_person_may_return_to_the_decision(service: Service) -> None:
    works = Gate()
    service.participants.script("/payment/confirm", [lost(), lost(), works])
    service.participants.script("/payment/cancel", [lost()])
    transaction = await hung(service)
    await resolve(service, transaction, **{"as": "cancelled"})
    await service.until(transaction["id"], lambda t: t["hung_reason"] == "send_unanswered")
    await resolve(service, transaction, **{"as": "confirmed"})
    await works.reached()
    works.open()
    body = await service.until_finished(transaction["id"])
    assert (body["outcome"], body["branches"][1]["phase"], body["branches"][1]["resolution"]) == (
        "confirmed",
        "confirmed",
        None,
    )


async def test_a_refusal_of_what_is_sent_hangs_and_a_person_may_settle_it_by_hand(service: Service) -> None:
    service.participants.script("/payment/confirm", [lost()])
    service.participants.script("/payment/cancel", [STUCK])
    transaction = await hung(service)
    await resolve(service, transaction, **{"as": "cancelled"})
    await service.until(transaction["id"], lambda t: t["hung_reason"] == "cancel_refused")
    await resolve(service, transaction, **{"as": "cancelled", "send": False})
    assert (await service.until_finished(transaction["id"]))["outcome"] == "mixed"


async def test_what_no_call_does_is_refused(service: Service) -> None:
    service.participants.script("/payment/action", [lost()])
    request = {"branches": [{"participant": "inventory"}, {"participant": "payment", "kind": "retryable"}]}
    begun = (await service.begin(request, prefer="respond-async")).json()
    await service.until(begun["id"], lambda t: t["hung"])
    at = f"/v1/admin/transactions/{begun['id']}/branches/payment/resolve"
    answer = await service.client.post(at, json=WANTED | {"as": "cancelled"})
    check_problem(answer, 409, "nothing-to-send")
