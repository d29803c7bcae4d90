"""A participant that has secrets: which calls it carries out, which it refuses, and what it counts."""

import json
import logging
from collections.abc import Mapping
from typing import Any, Final

import httpx
import pytest
from fastapi import FastAPI
from sqlalchemy import create_engine

from holdfast import Participant
from holdfast.signing import Secret, message_id, signed_headers
from holdfast.testing import FakeCoordinator
from tests.harness.participant_app import Service, running

NOW: Final = 1_800_000_000.0
MINE: Final = Secret(b"m" * 32)
NEXT: Final = Secret(b"n" * 32)
OTHER: Final = Secret(b"o" * 32)
TRANSACTION: Final = "0199b2c4-5e11-7c3a-9f60-2b8d1e47a905"


class Clock:
    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> float:
        return self.now


def body(operation: str | None) -> bytes:
    message = {"transaction_id": TRANSACTION, "branch": "seats", "payload": {"quantity": 2}}
    return json.dumps(message if operation is None else message | {"operation": operation}).encode()


def headers(content: bytes, *secrets: Secret, at: float = NOW) -> dict[str, str]:
    message = json.loads(content)
    id_ = message_id(message["transaction_id"], message["branch"], message.get("operation", ""))
    return signed_headers(secrets or (MINE,), id_, int(at), content)


async def post(service: Service, path: str, content: bytes, given: Mapping[str, str]) -> httpx.Response:
    app = FastAPI()
    app.include_router(service.participant.router)
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://participant") as client:
        return await client.post(path, content=content, headers=given)


def options(signatures: str | None = "require", *secrets: Secret, **more: Any) -> dict[str, Any]:
    texts = [secret.text for secret in secrets or (MINE,)]
    return {"secrets": texts, "signatures": signatures, "clock": Clock()} | more


async def refused(service: Service, answer: httpx.Response, *said: str) -> None:
    assert answer.status_code == 403, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["type"] == "/problems/bad-signature"
    for text in said:
        assert text in answer.json()["detail"]
    assert MINE.text not in answer.text
    assert service.holds == [], "no handler has run"


async def test_a_signed_call_is_carried_out(sqlite_url: str) -> None:
    async with running(sqlite_url, "sqlite", **options()) as service:
        for operation in ("try", "confirm"):
            content = body(operation)
            assert (await post(service, f"/{operation}", content, headers(content))).status_code == 200
        assert await service.effects() == {"try": 1, "confirm": 1}
        assert service.participant.signature_counts == {"valid": 2, "missing": 0, "wrong": 0}


async def test_an_unsigned_call_is_refused_only_if_signatures_are_required(sqlite_url: str) -> None:
    async with running(sqlite_url, "sqlite", **options()) as service:
        await refused(service, await post(service, "/try", body("try"), {}), "webhook-id")
        assert service.participant.signature_counts == {"valid": 0, "missing": 1, "wrong": 0}
    async with running(sqlite_url, "sqlite", **options("accept")) as service:
        content = body("try")
        assert (await post(service, "/try", content, {})).status_code == 200
        assert (await post(service, "/try", content, headers(content, OTHER))).status_code == 200
        assert (await post(service, "/try", content, headers(content))).status_code == 200
        assert service.participant.signature_counts == {"valid": 1, "missing": 1, "wrong": 1}


async def test_secrets_alone_require_signatures(sqlite_url: str) -> None:
    async with running(sqlite_url, "sqlite", **options(None)) as service:
        answer = await post(service, "/try", body("try"), {})
        assert (answer.status_code, service.holds) == (403, [])


async def test_without_secrets_nothing_is_checked_or_counted(sqlite_url: str) -> None:
    async with running(sqlite_url, "sqlite") as service:
        assert (await post(service, "/try", body("try"), {})).status_code == 200
        assert set(service.participant.signature_counts.values()) == {0}


@pytest.mark.parametrize("operation", ["try", "confirm", "cancel"])
async def test_a_forged_call_does_nothing(sqlite_url: str, operation: str) -> None:
    async with running(sqlite_url, "sqlite", **options()) as service:
        content = body(operation)
        right = headers(content)
        await refused(service, await post(service, f"/{operation}", content, headers(content, OTHER)))
        await refused(service, await post(service, f"/{operation}", content + b" ", right))
        cut = right | {"webhook-signature": right["webhook-signature"][:-4]}
        await refused(service, await post(service, f"/{operation}", content, cut))
        assert service.participant.signature_counts["wrong"] == 3


@pytest.mark.parametrize("signed_for", ["try", "confirm", "cancel", None])
async def test_a_body_is_obeyed_only_where_it_asks_to_be(sqlite_url: str, signed_for: str | None) -> None:
    """Path and headers aren't signed: whoever has seen a signed Cancel must not get a Confirm from it."""
    async with running(sqlite_url, "sqlite", **options()) as service:
        content = body(signed_for)
        for operation in {"try", "confirm", "cancel"} - {signed_for}:
            lies = {"Tcc-Operation": operation, "Tcc-Branch": "seats", "Tcc-Transaction-Id": TRANSACTION}
            await refused(service, await post(service, f"/{operation}", content, headers(content) | lies), operation)
        assert await service.effects() == {}


async def test_headers_that_contradict_the_signed_body_are_not_obeyed(sqlite_url: str) -> None:
    async with running(sqlite_url, "sqlite", **options()) as service:
        content = body("try")
        answer = await post(service, "/try", content, headers(content) | {"Tcc-Branch": "other"})
        assert answer.status_code == 422
        assert service.holds == []


async def test_an_old_call_sent_again_is_refused_and_a_recent_one_has_no_further_effect(sqlite_url: str) -> None:
    clock = Clock()
    async with running(sqlite_url, "sqlite", **options(clock=clock, signature_tolerance_s=60.0)) as service:
        tried, cancelled = body("try"), body("cancel")
        sent = headers(tried)
        assert (await post(service, "/try", tried, sent)).status_code == 200
        assert (await post(service, "/cancel", cancelled, headers(cancelled))).status_code == 200
        replayed = await post(service, "/try", tried, sent)
        assert (replayed.status_code, replayed.json()["type"]) == (409, "/problems/already-cancelled")
        clock.now += 62
        late = await post(service, "/try", tried, sent)
        assert (late.status_code, late.json()["type"]) == (403, "/problems/bad-signature")
        assert "62 s behind this service's clock" in late.json()["detail"]
        assert await service.effects() == {"try": 1, "cancel": 1}


async def test_a_secret_is_replaced_without_a_call_being_refused(sqlite_url: str) -> None:
    content = body("try")
    async with running(sqlite_url, "sqlite", **options("require", NEXT, MINE)) as service:
        for signers in ((MINE,), (NEXT, MINE), (NEXT,)):
            assert (await post(service, "/try", content, headers(content, *signers))).status_code == 200
        assert service.participant.signature_counts["valid"] == 3


async def test_a_body_that_is_no_json_is_refused_for_its_signature_first(sqlite_url: str) -> None:
    async with running(sqlite_url, "sqlite", **options()) as service:
        await refused(service, await post(service, "/try", b"{", {}))
        content = b"{"
        signed = await post(service, "/try", content, signed_headers([MINE], "msg_1", int(NOW), content))
        assert signed.json()["type"] == "/problems/malformed"


async def test_the_log_tells_once_a_minute_and_keeps_secrets(sqlite_url: str, caplog: pytest.LogCaptureFixture) -> None:
    async with running(sqlite_url, "sqlite", **options("accept")) as service:
        with caplog.at_level(logging.DEBUG):
            service.participant._announce()
            for _ in range(3):
                await post(service, "/try", body("try"), {})
    lines = [each.getMessage() for each in caplog.records if "event=signature_bad" in each.getMessage()]
    assert len(lines) == 1
    assert "participant=seats signatures=accept missing=1 wrong=0" in lines[0]
    assert "signatures=accept" in caplog.text
    assert MINE.text not in caplog.text
    assert MINE.text.removeprefix("whsec_") not in caplog.text


async def test_the_fake_coordinator_signs(sqlite_url: str) -> None:
    async with running(sqlite_url, "sqlite", secrets=[MINE.text]) as service:
        async with FakeCoordinator(service.participant) as coordinator:
            branch = coordinator.branch({"quantity": 1})
            coordinator.pass_time(7200)
            assert (await branch.try_()).ok
            assert (await branch.confirm()).ok
        assert service.participant.signature_counts["valid"] == 2


@pytest.mark.parametrize(
    ("given", "error", "said"),
    [
        ({"secrets": MINE.text}, TypeError, "list"),
        ({"secrets": [MINE.text, "whsec_abc"]}, ValueError, r"secrets\[1\]: a secret must"),
        ({"secrets": [MINE.text], "signatures": "maybe"}, ValueError, "accept"),
        ({"signatures": "require"}, ValueError, "needs secrets"),
        ({"signatures": "accept", "secrets": []}, ValueError, "needs secrets"),
        ({"secrets": [MINE.text], "signature_tolerance_s": 0}, ValueError, "signature_tolerance_s"),
    ],
)
def test_what_makes_no_sense_is_refused_at_once(given: Any, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said) as caught:
        Participant("seats", create_engine("sqlite:///seats.db"), coordinator_url="http://coordinator", **given)
    assert MINE.text not in str(caught.value)
