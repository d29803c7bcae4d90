"""Payloads and results are somebody else's text: every digit arrives as it was sent, wherever it is shown."""

import asyncio
import json
from dataclasses import replace
from typing import Any, Final

import httpx
import pytest

from app.api.bodies import read_begin
from app.api.rendering import exported
from app.storage import tables
from holdfast.json_text import checked
from tests.harness.coordinator_app import Received, Service, check_problem, lost, reply, running
from tests.harness.transactions import CAR, transaction

PATH: Final = "/v1/transactions"
TEXTS: Final = (
    b"1234567890123456.78",
    b"1E400",
    b"-0.0",
    b"9007199254740993",
    b"0." + b"1234567890" * 3,
    b"9" * 5000,
    b'{ "amount" : 1.10,\n\t"amount": [ ] }',
    b'"\x7f \\u007f \\/ \xf0\x9f\x98\x80 \\ud83d\\ude00 \\u0000"',
    b"null",
    b"[" * 100 + b"]" * 100,
)


def begin_of(payload: bytes, *, more: bytes = b"") -> bytes:
    return b'{"branches": [{"participant": "inventory", "payload": %b}]%b}' % (payload, more)


async def begun(service: Service, body: bytes, key: str | None = None) -> httpx.Response:
    headers = {"Content-Type": "application/json"} | ({"Idempotency-Key": f'"{key}"'} if key else {})
    return await service.client.post(PATH, content=body, headers=headers)


@pytest.mark.parametrize("text", TEXTS, ids=range(len(TEXTS)))
async def test_every_digit_arrives_as_it_was_sent(sqlite_url: str, text: bytes) -> None:
    async with running(sqlite_url) as service:
        await service.register("inventory")
        raw = httpx.Response(200, content=text, headers={"Content-Type": "application/json"})
        service.participants.script("/inventory/try", [lambda _: answered(raw)])
        answer = await begun(service, begin_of(text))
        assert answer.status_code == 201
        tried, confirmed = service.participants.received
        assert b'"payload":%b,"result":null}' % text in tried.content
        assert b'"payload":%b,"result":%b}' % (text, text) in confirmed.content
        location = answer.headers["location"]
        shown = b'"payload":%b,"result":%b,' % (text, text)
        assert shown in answer.content
        assert shown in (await service.client.get(location)).content
        assert shown in (await service.client.get(PATH)).content


async def answered(response: httpx.Response) -> httpx.Response:
    return response


async def test_a_megabyte_of_del_does_not_grow(sqlite_url: str) -> None:
    async with running(sqlite_url) as service:
        await service.register("inventory")
        body = begin_of(b'"%b"' % (b"\x7f" * 1_000_000))
        answer = await begun(service, body)
        assert answer.status_code == 201
        assert all(len(each.content) < len(body) + 1000 for each in service.participants.received)
        assert len(answer.content) < len(body) + 2000


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        (b'{"a": 1, "b": [2]}', b'{"b":[2.0],"a":1e0}', True),
        (b"1234567890123456.78", b"1234567890123456.780", True),
        (b"1234567890123456.78", b"1234567890123456.8", False),
        (b"9007199254740993", b"9007199254740992", False),
        (b'"A"', b'"\\u0041"', True),
        (b"1E400", b"1E401", False),
        (b"{}", b"[]", False),
        (b"true", b"1", False),
    ],
)
async def test_the_same_payload_is_the_same_request(service: Service, first: bytes, second: bytes, same: bool) -> None:
    one = await begun(service, begin_of(first), "k")
    other = await begun(service, begin_of(second), "k")
    if same:
        assert other.json()["id"] == one.json()["id"]
    else:
        check_problem(other, 409, "idempotency-key-conflict")


async def test_a_key_that_version_0_1_recorded(service: Service) -> None:
    """It hashed the parsed request: what is one double to Python is one request, as it was then."""
    body = (
        b'{"name": "place-order", "timeout_s": 20, "branches": [{"participant": "inventory", "payload": '
        b'{"sku": "A-1", "price": 1.10}}, {"participant": "payment", "payload": {}}]}'
    )
    first = await begun(service, body, "k")
    assert first.status_code == 201
    recorded = {"hash": "37a583bab17b0e02b70793e54e601c7ba4260a47e16ff9a0b7098a2537bb8640", "id": first.json()["id"]}
    await service.parts.journal.write(_with_hash, recorded)
    again = await begun(service, body.replace(b"1.10", b"1.1"), "k")
    assert again.json()["id"] == recorded["id"]
    for other in (b"1.2", b"9" * 5000):
        check_problem(await begun(service, body.replace(b"1.10", other), "k"), 409, "idempotency-key-conflict")


def _with_hash(connection: Any, items: Any) -> list[None]:
    table = tables.transactions
    for item in items:
        connection.execute(table.update().where(table.c.id == item["id"]).values(request_hash=item["hash"]))
    return [None] * len(items)


def test_the_earlier_form_of_inline_endpoints() -> None:
    body = (
        b'{"branches": [{"name": "card", "endpoints": {"try": "http://127.0.0.1/t", "confirm": "http://127.0.0.1/c", '
        b'"cancel": "http://127.0.0.1/x"}, "payload": [1, 2.0, 9007199254740993]}], "answer_at": "end", '
        b'"try_order": "sequential"}'
    )
    earlier = read_begin(body, "application/json")._earlier_hash()
    assert earlier == "6c00c39452788d581c622660c43468268dc55bb44aa0a1940776a17b5d3f726d"


def test_the_export_has_every_digit_on_one_line() -> None:
    payload = b'{"n": 1234567890123456.78,\r\n"m":\n1E400}'
    line = b"".join(exported(transaction(1, replace(CAR, payload=checked(payload))), ()))
    assert b'"payload":{"n": 1234567890123456.78,  "m": 1E400},' in line
    assert line.splitlines() == [line]


async def test_what_is_wrong_is_said_without_reading_the_payload(service: Service) -> None:
    hostile = b"[" + b"[]," * 300_000 + b"[]]"
    body = begin_of(hostile, more=b', "colour": 1')
    document = check_problem(await begun(service, body), 422, "invalid")
    assert document["errors"] == [
        {"at": "body/colour", "message": "Unknown member; see /docs for those that there are"}
    ]
    many = b'{"branches": [%b]}' % b",".join([b"{}"] * 100_000)
    assert "100000 branches" in check_problem(await begun(service, many), 422, "invalid")["detail"]
    deep = begin_of(b"[" * 101 + b"]" * 101)
    assert check_problem(await begun(service, deep), 422, "invalid")["errors"][0]["at"] == "body/branches/0/payload"


async def test_what_all_requests_hold_in_memory_is_bounded(sqlite_url: str) -> None:
    async with running(sqlite_url, memory_max_bytes=4 * 1_048_576) as service:
        await service.register("inventory")
        held = asyncio.Event()
        release = asyncio.Event()

        async def hold(_: Received) -> httpx.Response:
            held.set()
            await release.wait()
            return httpx.Response(200)

        service.participants.script("/inventory/try", [hold, reply(200)])
        megabyte = begin_of(b'"%b"' % (b"x" * 1_000_000))
        first = asyncio.create_task(begun(service, megabyte, "k"))
        await held.wait()
        refused = await begun(service, megabyte)
        check_problem(refused, 503, "overloaded")
        assert refused.headers["retry-after"]
        small = await service.client.post(PATH, content=begin_of(b"1"), headers={"Content-Type": "application/json"})
        assert small.status_code == 201, "what is small still fits in"
        release.set()
        assert (await first).status_code == 201
        assert (await begun(service, megabyte)).status_code == 201, "everything was freed"
        assert service.parts.memory.used == 0


@pytest.mark.parametrize("path", ["/v1/participants/x", "/v1/transactions/x/cancel"])
async def test_only_a_begin_may_be_large(service: Service, path: str) -> None:
    method = "PUT" if "participants" in path else "POST"
    answer = await service.client.request(method, path, content=json.dumps("x" * 65_536))
    check_problem(answer, 413, "payload-too-large")


async def test_a_cancelled_wait_frees_its_memory(service: Service) -> None:
    service.participants.script("/inventory/try", [reply(409, {"detail": "no"})])
    assert (await begun(service, begin_of(b"1"))).status_code == 409
    assert service.parts.memory.used == 0


async def test_whoever_brings_no_payload_is_served_though_the_memory_is_full(service: Service) -> None:
    """Probes, lists and commands: a full process must not be restarted for it, and has to be helped out of it."""
    service.participants.script("/inventory/try", [lost()])
    begin = begin_of(b"1", more=b', "answer_at": "record"')
    id_ = (await begun(service, begin)).json()["id"]
    memory = service.parts.memory
    full = memory.left(hung=False)
    memory.hold(full)
    try:
        for path in ("/healthz", "/readyz", "/metrics", PATH, f"{PATH}/{id_}", "/v1/admin/hung"):
            assert (await service.client.get(path)).status_code == 200, path
        assert (await service.client.post(f"{PATH}/{id_}/cancel")).status_code == 200
        check_problem(await begun(service, begin), 503, "overloaded")
    finally:
        memory.free(full)
