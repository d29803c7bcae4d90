"""`name`, `reference` and reasons are one line in any alphabet, from the request to every answer."""

from typing import Final

import httpx
import pytest

from tests.harness.coordinator_app import Json, Service, check_problem, reply

LINES: Final = {
    "ideographic space": "東京\u3000支店",
    "no-break space": "100\u00a0000\u202f€",
    "zero width non-joiner": "क्\u200cष",
    "emoji family": "👩\u200d👩\u200d👧 👍🏽 🏳️\u200d🌈",
    "combining marks": "e\u0301 n\u0303 क्षि",
    "right to left": "\u200fשלם\u200e!",
    "soft hyphen": "Donau\u00addampf",
    "private use": "\ue000",
    "not assigned yet": "\U0003fffd",
}
BREAKS: Final = ["\n", "\r", "\r\n", "\t", "\v", "\f", "\x00", "\x1b", "\x1e", "\x7f", "\x85", "\u2028", "\u2029"]
BRANCHES: Final = [{"participant": "payment"}]


@pytest.mark.parametrize("text", LINES.values(), ids=LINES.keys())
async def test_a_line_arrives_as_it_was_sent(service: Service, text: str) -> None:
    service.participants.script("/payment/try", [reply(409, {"detail": text})])
    body = {"name": text, "reference": f"{text}4711", "branches": BRANCHES}
    cancelled = check_problem(await service.begin(body), 409, "transaction-cancelled")["transaction"]
    assert (cancelled["name"], cancelled["reference"], cancelled["reason"]["detail"]) == (text, f"{text}4711", text)
    await service.begin({"name": "another", "branches": BRANCHES})
    for wanted in ({"name": text}, {"reference": f"{text}4711"}):
        assert (await service.json("/v1/transactions", **wanted))["items"] == [cancelled]


@pytest.mark.parametrize("text", LINES.values(), ids=LINES.keys())
async def test_so_does_the_reason_of_a_resolution(service: Service, text: str) -> None:
    answer = await resolve(service, text)
    assert answer.status_code == 200
    resolved: Json = answer.json()
    assert resolved["reason"]["detail"] == resolved["branches"][0]["resolution"]["reason"] == text


@pytest.mark.parametrize("breaks", BREAKS)
async def test_line_breaks_and_controls_are_refused(service: Service, breaks: str) -> None:
    text = f"a{breaks}b"
    for member in ("name", "reference"):
        document = check_problem(await service.begin({member: text, "branches": BRANCHES}), 422, "invalid")
        assert "one line" in document["errors"][0]["message"]
        answer = await service.client.get("/v1/transactions", params={member: text})
        check_problem(answer, 422, "invalid")
    assert set((await service.rows()).values()) == {0}


@pytest.mark.parametrize("control", sorted({*BREAKS} - {*"\n\r\v\f\x1e\x85\u2028\u2029", "\r\n"}))
async def test_a_reason_of_several_lines_is_joined_and_its_controls_are_refused(service: Service, control: str) -> None:
    check_problem(await resolve(service, f"a{control}b"), 422, "invalid")


async def resolve(service: Service, reason: str) -> httpx.Response:
    """A branch whose Confirm is refused, settled by hand for this reason."""
    service.participants.script("/payment/confirm", [reply(410)])
    begun = await service.begin({"branches": BRANCHES, "answer_at": "decision"})
    transaction_id = (begun.json())["id"]
    await service.until(transaction_id, lambda transaction: transaction["hung"])
    path = f"/v1/admin/transactions/{transaction_id}/branches/payment/resolve"
    return await service.client.post(path, json={"as": "confirmed", "reason": reason})
