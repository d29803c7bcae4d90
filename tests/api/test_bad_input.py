"""Bad input, and what it gets: a problem document that says what to do, and nothing recorded."""

import json
import logging
from collections.abc import AsyncIterator
from datetime import datetime
from time import time
from typing import Any, Final

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import text

from app.api.problems import CATALOGUE
from app.api.rendering import rfc3339
from app.api.schemas import BeginRequest
from app.protocol.values import LATEST_S
from app.settings import TIMEOUT_LIMIT_S, Settings
from tests.harness.asgi import JSON, ask
from tests.harness.coordinator_app import Json, Service, check_problem, endpoints, running

PATH: Final = "/v1/transactions"
BRANCH: Final[Json] = {"participant": "inventory"}
INLINE: Final[Json] = {"name": "card", "endpoints": endpoints("card")}


def branches(*items: Any) -> Json:
    return {"branches": list(items)}


BODIES: Final[dict[str, tuple[Any, str]]] = {
    "no branches": ({}, "branches"),
    "empty branches": (branches(), "branches"),
    "branches null": ({"branches": None}, "branches"),
    "branches no list": ({"branches": {"inventory": {}}}, "branches"),
    "a branch is text": (branches("inventory"), "branches"),
    "unknown field": (branches(BRANCH) | {"colour": "red"}, "colour"),
    "unknown field of a branch": (branches(BRANCH | {"retries": 3}), "retries"),
    "unknown field of endpoints": (branches({"name": "c", "endpoints": endpoints("c") | {"undo": "x"}}), "undo"),
    "the resource's own fields": (branches(BRANCH) | {"phase": "confirmed"}, "phase"),
    "body is a list": ([branches(BRANCH)], "body"),
    "body is text": ("begin", "body"),
    "body is null": (None, "body"),
    "neither participant nor endpoints": (branches({"name": "a"}), "participant or endpoints"),
    "both participant and endpoints": (branches(INLINE | BRANCH), "participant or endpoints"),
    "endpoints without a name": (branches({"endpoints": endpoints("card")}), "name"),
    "endpoints incomplete": (branches({"name": "c", "endpoints": {"try": "http://127.0.0.1/t"}}), "confirm"),
    **{
        f"time limit of a call is {limit}": (branches(INLINE | {"call_timeout_s": limit}), "call_timeout_s")
        for limit in (0, -1, 3601, "5", True)
    },
    "time limit of a call to a participant": (branches(BRANCH | {"call_timeout_s": 5}), "registry"),
    "duplicate branch names": (branches(BRANCH, BRANCH), "inventory"),
    "duplicate by default": (branches(BRANCH, INLINE | {"name": "inventory"}), "inventory"),
    "too many branches": (branches(*({"name": f"b{n}"} | BRANCH for n in range(65))), "64"),
    "name of another type": (branches(BRANCH) | {"name": 1}, "name"),
    "name empty": (branches(BRANCH) | {"name": ""}, "name"),
    "name too long": (branches(BRANCH) | {"name": "x" * 201}, "name"),
    "name with a line break": (branches(BRANCH) | {"name": "a\nb"}, "name"),
    "reference with a null": (branches(BRANCH) | {"reference": "a\0"}, "reference"),
    "reference of another type": (branches(BRANCH) | {"reference": {"a": 1}}, "reference"),
    "branch name of another type": (branches(BRANCH | {"name": 7}), "name"),
    "branch name with a slash": (branches(BRANCH | {"name": "a/b"}), "name"),
    "branch name too long": (branches(BRANCH | {"name": "x" * 65}), "name"),
    "participant of another type": (branches({"participant": ["inventory"]}), "participant"),
    "timeout zero": (branches(BRANCH) | {"timeout_s": 0}, "timeout_s"),
    "timeout negative": (branches(BRANCH) | {"timeout_s": -1}, "timeout_s"),
    "timeout too long": (branches(BRANCH) | {"timeout_s": 2_592_001}, "2592000"),
    "timeout that no float can add to": (branches(BRANCH) | {"timeout_s": 1e308}, "2592000"),
    "timeout is text": (branches(BRANCH) | {"timeout_s": "30"}, "timeout_s"),
    "timeout is a truth": (branches(BRANCH) | {"timeout_s": True}, "timeout_s"),
    "try order unknown": (branches(BRANCH) | {"try_order": "random"}, "try_order"),
    "answer_at unknown": (branches(BRANCH) | {"answer_at": "later"}, "answer_at"),
}


@pytest.mark.parametrize(("body", "named"), BODIES.values(), ids=BODIES.keys())
async def test_what_is_not_allowed_is_422_and_not_recorded(service: Service, body: Any, named: str) -> None:
    headers = {"Content-Type": "application/json", "Idempotency-Key": '"k"'}
    answer = await service.client.post(PATH, content=json.dumps(body), headers=headers)
    document = check_problem(answer, 422, "invalid")
    assert named in json.dumps(document, ensure_ascii=False)
    await nothing_happened(service)


async def nothing_happened(service: Service) -> None:
    assert set((await service.rows()).values()) == {0}
    assert service.participants.received == []
    accepted = await service.begin(branches(BRANCH), idempotency_key='"k"')
    assert accepted.status_code == 201, "the key was not used up"


def test_a_deadline_that_is_no_date_is_refused_whatever_the_setting_says() -> None:
    settings = Settings(timeout_max_s=TIMEOUT_LIMIT_S)
    for timeout_s in (TIMEOUT_LIMIT_S, 1.0):
        assert BeginRequest.model_validate(branches(INLINE) | {"timeout_s": timeout_s}).fault(settings, time()) is None
    far = settings.model_copy(update={"timeout_max_s": 1e300})  # as an earlier version allowed
    for timeout_s in (LATEST_S - time() + 60, 3e11, 1e18, 1e300):
        request = BeginRequest.model_validate(branches(INLINE) | {"timeout_s": timeout_s})
        assert "9999" in (request.fault(far, time()) or ""), timeout_s


@pytest.mark.parametrize("column", ["created_at", "deadline", "decided_at", "finished_at"])
@pytest.mark.parametrize("at", [1e12, 1e300, -1e12, -1e300])
async def test_a_row_with_a_time_that_is_no_date_is_shown_all_the_same(
    service: Service, column: str, at: float
) -> None:
    begun = (await service.begin(branches(BRANCH))).json()
    with service.parts.journal.engine.begin() as connection:
        connection.execute(text(f"UPDATE transactions SET {column} = {at!r}"))
    nearest = "9999-01-01T00:00:00.000000Z" if at > 0 else "1970-01-01T00:00:00.000000Z"
    (listed,) = (await service.json(PATH))["items"]
    assert listed == begun | {column: nearest}
    assert await service.get(begun["id"]) == listed


@given(st.floats())
def test_every_time_has_a_date(at: float) -> None:
    shown = rfc3339(at)
    assert shown is not None
    assert datetime.fromisoformat(shown).year in range(1970, 10_000)
    if 0 <= at <= LATEST_S:
        assert abs(datetime.fromisoformat(shown).timestamp() - at) < 1e-3


DEEP: Final = '{"branches": [{"participant": "inventory", "payload": ' + "[" * 100_000 + "]" * 100_000 + "}]}"


def payload(text: bytes) -> bytes:
    return b'{"branches": [{"participant": "inventory", "payload": %b}]}' % text


UNREADABLE: Final[dict[str, tuple[bytes, str]]] = {
    "no JSON": (b"begin, please", "application/json"),
    "half": (b'{"branches": [', "application/json"),
    "two values": (b"{} {}", "application/json"),
    "not UTF-8": (b'{"name": "\xff\xfe\xfa"}', "application/json"),
    "a time that is not a number": (
        b'{"branches": [{"participant": "inventory"}], "timeout_s": NaN}',
        "application/json",
    ),
    "a time without end": (b'{"branches": [{"participant": "inventory"}], "timeout_s": Infinity}', "application/json"),
    "a payload that is not a number": (payload(b"NaN"), "application/json"),
    "an infinite payload": (payload(b"[-Infinity]"), "application/json"),
    "a payload with half a character": (payload(b'{"\\ud800": 1}'), "application/json"),
    "a payload of broken JSON": (payload(b'{"a": 1,}'), "application/json"),
    "too deep": (DEEP.encode(), "application/json"),
    "a form": (b"name=place-order", "application/x-www-form-urlencoded"),
    "text": (json.dumps(branches(BRANCH)).encode(), "text/plain"),
    "XML": (b"<branches/>", "application/xml"),
}


@pytest.mark.parametrize(("content", "media_type"), UNREADABLE.values(), ids=UNREADABLE.keys())
async def test_what_can_not_be_read_is_400_and_not_recorded(service: Service, content: bytes, media_type: str) -> None:
    headers = {"Content-Type": media_type, "Idempotency-Key": '"k"'}
    answer = await service.client.post(PATH, content=content, headers=headers)
    assert "JSON" in check_problem(answer, 400, "malformed")["detail"]
    await nothing_happened(service)


async def test_a_payload_that_is_not_utf8_is_422_and_not_recorded(service: Service) -> None:
    headers = {"Content-Type": "application/json", "Idempotency-Key": '"k"'}
    answer = await service.client.post(PATH, content=payload(b'"\xff"'), headers=headers)
    assert "UTF-8" in check_problem(answer, 422, "invalid")["detail"]
    await nothing_happened(service)


@pytest.mark.parametrize("headers", [{}, {"Content-Type": "application/json"}])
async def test_no_body_at_all(service: Service, headers: dict[str, str]) -> None:
    answer = await service.client.post(PATH, headers=headers)
    check_problem(answer, 422, "invalid")
    await nothing_happened(service)


@pytest.mark.parametrize("levels", [99, 100, 500])
async def test_payloads_nest_a_hundred_levels_deep(service: Service, levels: int) -> None:
    payload = "[" * levels + "]" * levels
    content = f'{{"branches": [{{"participant": "inventory", "payload": {payload}}}]}}'
    answer = await service.client.post(PATH, content=content, headers={"Content-Type": "application/json"})
    if levels <= 100:
        assert answer.status_code == 201
        assert service.participants.received[0].body["payload"] == json.loads(payload)
    else:
        assert "100 levels" in check_problem(answer, 422, "invalid")["detail"]


async def test_an_unknown_participant_is_422_and_named(service: Service) -> None:
    answer = await service.begin(branches(BRANCH, {"participant": "shipping"}), idempotency_key='"k"')
    document = check_problem(answer, 422, "unknown-participant")
    assert document["participant"] == "shipping"
    await nothing_happened(service)


@pytest.mark.parametrize("operation", ["try", "confirm", "cancel"])
@pytest.mark.parametrize("url", ["http://example.org/", "http://[fe80::1]/", "http://127.0.0.1\t/", "", "http://ä/"])
async def test_an_endpoint_that_is_not_allowed_is_422(service: Service, operation: str, url: str) -> None:
    inline = {"name": "card", "endpoints": endpoints("card") | {operation: url}}
    document = check_problem(await service.begin(branches(inline), idempotency_key='"k"'), 422, "endpoint-not-allowed")
    assert document["branch"] == "card"
    if url.startswith("http://example"):
        assert "HOLDFAST_ALLOWED_ENDPOINTS" in document["detail"]
    await nothing_happened(service)


async def chunks(content: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(content), 1000):
        yield content[start : start + 1000]


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize(("method", "path"), [("POST", PATH), ("PUT", "/v1/participants/inventory")])
async def test_too_large_a_body_is_413(sqlite_url: str, method: str, path: str, *, chunked: bool) -> None:
    async with running(sqlite_url, body_max_bytes=5000) as service:
        await service.register("inventory")
        large = json.dumps(branches(BRANCH | {"payload": "x" * 5000})).encode()
        answer = await service.client.request(
            method,
            path,
            content=chunks(large) if chunked else large,
            headers={"Content-Type": "application/json", "Idempotency-Key": '"k"'},
        )
        assert "HOLDFAST_BODY_MAX_BYTES" in check_problem(answer, 413, "payload-too-large")["detail"]
        fits = branches(BRANCH | {"payload": "x" * 4900})
        assert (await service.begin(fits)).status_code == 201
        assert (await service.rows())["transactions"] == 1


@pytest.mark.parametrize(("method", "path"), [("POST", PATH), ("PUT", "/v1/participants/inventory")])
async def test_who_leaves_in_the_middle_of_a_body_is_no_defect(
    service: Service, caplog: pytest.LogCaptureFixture, method: str, path: str
) -> None:
    """Or whoever reaches the port fills the log with tracebacks."""
    answer = await ask(service.app, method, path, headers=[JSON], body=[b'{"branches": [', None])
    assert answer.status == 400
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []
    await nothing_happened(service)


@pytest.mark.parametrize("length", [b"1048577", b"9" * 5000, b"-1", b"\xb2", b"1e3", b""])
async def test_a_length_that_is_none_is_too_long(service: Service, length: bytes) -> None:
    answer = await ask(service.app, "POST", PATH, headers=[JSON, (b"content-length", length)], body=[b"{}"])
    assert (answer.status, answer.json()["type"]) == (413, "/problems/payload-too-large")


async def test_what_is_refused_for_its_size_is_not_done_all_the_same(service: Service) -> None:
    begun = (await service.begin(branches(BRANCH), prefer="wait=0")).json()
    path = f"{PATH}/{begun['id']}/cancel"
    check_problem(await service.client.post(path, content=b" " * 1_048_577), 413, "payload-too-large")
    assert (await service.until_finished(begun["id"]))["outcome"] == "confirmed"


async def test_a_body_full_of_mistakes_is_answered_in_little_time_and_few_words(service: Service) -> None:
    same = json.dumps(branches(*[BRANCH] * 34_000))
    different = json.dumps(branches(*({"name": f"b{n}"} | BRANCH for n in range(20_000))))
    wrong = json.dumps(branches(*[{}] * 100_000))
    for content in (same, different, wrong):
        assert len(content) < 1_048_576
        answer = await service.client.post(PATH, content=content, headers={"Content-Type": "application/json"})
        check_problem(answer, 422, "invalid")
        assert len(answer.content) < 10_000
    assert (await service.rows())["transactions"] == 0


@pytest.mark.parametrize(
    ("method", "path", "status", "slug"),
    [
        ("GET", "/v1", 404, "not-found"),
        ("GET", "/v1/nothing", 404, "not-found"),
        ("GET", "/v2/transactions", 404, "not-found"),
        ("POST", "/v1/transactions/", 404, "not-found"),
        ("GET", "/problems/nothing", 404, "not-found"),
        ("GET", "/%00", 404, "not-found"),
        ("DELETE", "/v1/transactions", 405, "method-not-allowed"),
        ("PUT", "/v1/transactions/x", 405, "method-not-allowed"),
        ("GET", "/v1/transactions/x/cancel", 405, "method-not-allowed"),
        ("POST", "/healthz", 405, "method-not-allowed"),
        ("POST", "/v1/participants/inventory", 405, "method-not-allowed"),
        ("BREW", "/v1/participants", 405, "method-not-allowed"),
    ],
)
async def test_unknown_paths_and_methods(service: Service, method: str, path: str, status: int, slug: str) -> None:
    answer = await service.client.request(method, path)
    check_problem(answer, status, slug)
    assert ("allow" in answer.headers) == (status == 405)


async def test_every_problem_has_a_page(service: Service) -> None:
    for slug, kind in CATALOGUE.items():
        page = await service.client.get(f"/problems/{slug}")
        assert page.status_code == 200
        assert kind.title in page.text
        assert kind.advice in page.text
        assert str(kind.status) in page.text
    assert {kind.status for kind in CATALOGUE.values()} == {
        *(400, 401, 403, 404, 405, 408, 409, 413, 421, 422, 429, 431, 500, 503)
    }


async def test_a_defect_is_a_problem_without_details(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("the secret")

    monkeypatch.setattr(service.parts.registry, "all", broken)
    transport = httpx.ASGITransport(service.app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        answer = await client.get("/v1/participants")
    check_problem(answer, 500, "internal-error")
    assert "secret" not in answer.text
