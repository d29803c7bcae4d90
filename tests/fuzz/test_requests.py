"""What comes in, damaged: begin and its headers, the SDK's routes; and that nothing takes long, however it is made."""

import asyncio
import json
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, Final

import pytest
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from hypothesis import given, settings
from hypothesis import strategies as st

from app.api.bodies import read_begin
from app.api.pagination import parse_cursor
from app.api.prefer_header import parse_prefer
from app.api.problems import CATALOGUE
from app.api.request_headers import parse_idempotency_key, parse_traceparent
from holdfast import wire
from holdfast.json_text import text_of
from tests.fuzz.mutations import damaged, in_pieces
from tests.harness import participant_app as sdk
from tests.harness.asgi import Answer, ask
from tests.harness.budget import TIMES
from tests.harness.coordinator_app import Service, base_url, endpoints, running

BEGINS: Final = [
    b'{"branches": [{"participant": "inventory", "payload": {"sku": "A-1", "quantity": 2}}]}',
    b'{"name": "order", "reference": "r", "timeout_s": 30, "try_order": "sequential", "answer_at": "end", "branches": '
    + json.dumps([{"name": "card", "endpoints": endpoints("card"), "payload": ["\U0001f600", 1.5, None]}]).encode()
    + b"}",
]
headers = st.lists(
    st.tuples(st.just(b"idempotency-key"), damaged([b'"key-1"', b"bare", b'"a\\"b\\\\"']))
    | st.tuples(st.just(b"prefer"), damaged([b"wait=0", b"respond-async, wait=0", b'wait="0"; x=y']))
    | st.tuples(st.just(b"traceparent"), damaged([b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"]))
    | st.tuples(st.just(b"content-type"), damaged([b"application/json; charset=utf-8", b"application/tcc+json"]))
    | st.tuples(st.just(b"content-length"), damaged([b"10"]))
    | st.tuples(st.just(b"host"), damaged([b"coordinator:8000"])),
    max_size=3,
)
JSON: Final = (b"content-type", b"application/json")
cuts = st.lists(st.integers(0, 300), max_size=2)


@pytest.fixture(scope="module")
def runner() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as running_:
        yield running_


@pytest.fixture(scope="module")
def coordinator(tmp_path_factory: pytest.TempPathFactory, runner: asyncio.Runner) -> Iterator[Service]:
    url = f"sqlite:///{tmp_path_factory.mktemp('requests') / 'holdfast.db'}"
    context = running(url, wait_default_s=1.0, timeout_max_s=60.0)
    service = runner.run(context.__aenter__())
    runner.run(service.register("inventory"))
    yield service
    runner.run(context.__aexit__(None, None, None))


def check(answer: Answer) -> None:
    """It says no as documented, and nothing that is nobody's business."""
    assert answer.status < 500, answer.body
    for word in (b"Traceback", b"SELECT", b"INSERT", b'File "', b"sqlite"):
        assert word not in answer.body
    document = answer.json()
    if answer.status >= 400:
        assert answer.headers["content-type"] == "application/problem+json"
        assert document["status"] == answer.status
        assert document["detail"]
        assert len(answer.body) < 10_000


@settings(max_examples=100 * TIMES)
@given(damaged(BEGINS), headers, cuts, st.booleans())
def test_begin(
    coordinator: Service, runner: asyncio.Runner, body: bytes, sent: list[Any], at: list[int], leaves: bool
) -> None:
    pieces: list[bytes | None] = [*in_pieces(body, at)] or [b""]
    path = "/v1/transactions"
    if leaves:
        pieces[-1] = None
    answer = runner.run(ask(coordinator.app, "POST", path, headers=[JSON, *sent], body=pieces))
    check(answer)
    if answer.status >= 400:
        assert answer.json()["type"].removeprefix("/problems/") in CATALOGUE
    begun = answer.json().get("transaction") or answer.json()
    if "id" in begun:
        again = runner.run(coordinator.client.get(f"{path}/{begun['id']}"))
        assert again.status_code == 200
        assert [b["payload"] for b in again.json()["branches"]] == [b["payload"] for b in begun["branches"]]


paths = damaged(
    [
        b"/v1/transactions?phase=trying&limit=2&cursor=WyIwMWExZmMyZS0yMGU4LTdkYjUtODkzZC01MDhjYWE2YzliZmIiXQ",
        b"/v1/transactions?name=order&reference=r&participant=inventory&hung=true",
        b"/v1/transactions/01a1fc2e-20e8-7db5-893d-508caa6c9bfb/calls?cursor=WzFd",
        b"/v1/transactions/01a1fc2e-20e8-7db5-893d-508caa6c9bfb/decision",
        b"/v1/admin/hung?older_than_s=1.5&cursor=WzEuNSwgIjAxYTFmYzJlLTIwZTgtN2RiNS04OTNkLTUwOGNhYTZjOWJmYiJd",
        b"/v1/participants/inventory",
        b"/problems/invalid",
    ]
).map(lambda path: path.decode("latin-1").encode("ascii", "ignore").decode() or "/")


@settings(max_examples=80 * TIMES)
@given(paths, headers)
def test_paths_and_queries(coordinator: Service, runner: asyncio.Runner, path: str, sent: list[Any]) -> None:
    answer = runner.run(ask(coordinator.app, "GET", path, headers=sent))
    if answer.headers["content-type"].startswith("text/"):
        assert (answer.status, path.partition("?")[0]) in ((200, "/problems/invalid"), (200, "/metrics"))
    else:
        check(answer)


REGISTRATIONS: Final = [json.dumps({"base_url": base_url("p"), "call_timeout_s": 1.5, "concurrency_max": 8}).encode()]


@settings(max_examples=30 * TIMES)
@given(damaged(REGISTRATIONS), headers)
def test_register(coordinator: Service, runner: asyncio.Runner, body: bytes, sent: list[Any]) -> None:
    answer = runner.run(ask(coordinator.app, "PUT", "/v1/participants/p", headers=[JSON, *sent], body=[body]))
    check(answer)


MESSAGE: Final = wire.Message(
    transaction_id="t-1",
    branch="seats",
    operation=wire.Operation.TRY,
    attempt=1,
    hold_ttl_s=60.0,
    payload=text_of({"quantity": 1}),
)
named = st.lists(
    st.sampled_from(sorted(MESSAGE.headers())).flatmap(
        lambda name: st.tuples(st.just(name.lower().encode()), damaged([MESSAGE.headers()[name].encode()]))
    ),
    max_size=2,
)


@pytest.fixture(scope="module")
def seats(tmp_path_factory: pytest.TempPathFactory, runner: asyncio.Runner) -> Iterator[FastAPI]:
    url = f"sqlite:///{tmp_path_factory.mktemp('seats') / 'seats.db'}"
    context = sdk.running(url, "sqlite")
    service = runner.run(context.__aenter__())
    app = FastAPI()
    app.include_router(service.participant.router)
    yield app
    runner.run(context.__aexit__(None, None, None))


@settings(max_examples=80 * TIMES)
@given(damaged([MESSAGE.body()]), named, st.sampled_from(["try", "try", "confirm", "cancel"]), cuts)
def test_the_sdks_routes(
    seats: FastAPI, runner: asyncio.Runner, body: bytes, sent: list[Any], operation: str, at: list[int]
) -> None:
    body = body.replace(b'"operation":"try"', f'"operation":"{operation}"'.encode())
    pieces = [*in_pieces(body, at)] or [b""]
    answer = runner.run(ask(seats, "POST", f"/{operation}", headers=sent, body=pieces))
    if answer.status == 200:
        answer.json()
    else:
        check(answer)


SIZE: Final = 100_000
LIMIT_S: Final = 1.0
"""Of the processor's time, for each reader; what grows with the square of the size takes minutes."""
NASTY: Final = [
    b'"',
    b"\\",
    b'\\"',
    b",",
    b" ",
    b";",
    b"=",
    b"wait=",
    b"9",
    b"-",
    b"[",
    b'{"a":',
    b'"a",',
    b"\xc3",
    b"Jan ",
]


@pytest.mark.parametrize("piece", NASTY, ids=repr)
@pytest.mark.parametrize("prefix", [b"", b'"', b'["', b'{"branches": [{"payload": "', b"Thu, 1 Jan 2026 00:00:00 "])
def test_nothing_takes_long(prefix: bytes, piece: bytes) -> None:
    data = prefix + piece * (SIZE // len(piece))
    text = data.decode("latin-1")
    readers: list[Callable[[], object]] = [
        lambda: parse_prefer([text, text]),
        lambda: parse_idempotency_key(text),
        lambda: parse_traceparent(text),
        lambda: parse_cursor(text, str),
        lambda: read_begin(data, "application/json"),
        lambda: wire.refusal_detail(data),
        lambda: wire.json_text(data),
        lambda: wire.retry_after_s({"retry-after": text, "date": text}),
        lambda: wire.hold_ttl_s({"tcc-hold-ttl": text}),
        lambda: wire.header_text(text),
    ]
    for read in readers:
        started = time.process_time()
        with suppress(ValueError, RequestValidationError):
            read()
        assert time.process_time() - started < LIMIT_S
