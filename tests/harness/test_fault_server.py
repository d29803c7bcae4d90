"""Every fault is what it claims to be, seen by a plain HTTP client and, where that hides it, by a raw socket."""

import asyncio
from collections.abc import AsyncIterator

import httpx
import pytest

from tests.harness.fault_server import (
    Action,
    EndlessBody,
    EndlessHead,
    FaultServer,
    NeverAnswers,
    Raw,
    Redirect,
    Reply,
    Reset,
    SlowBody,
    TruncatedBody,
    gzip_bomb,
    huge_headers,
)


@pytest.fixture
async def server() -> AsyncIterator[FaultServer]:
    async with FaultServer() as running:
        yield running


@pytest.fixture
async def client() -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(timeout=10) as running:
        yield running


async def test_a_script_is_played_in_order_and_its_last_action_stays(
    server: FaultServer, client: httpx.AsyncClient
) -> None:
    server.script("/try", [Reply(503, headers={"Retry-After": "2"}), Reply(200, {"hold_id": "h-1"})])
    answers = [await client.post(server.url("/try"), json={"n": n}) for n in range(3)]
    assert [answer.status_code for answer in answers] == [503, 200, 200]
    assert answers[0].headers["retry-after"] == "2"
    assert answers[2].json() == {"hold_id": "h-1"}
    assert [request.json() for request in server.requests] == [{"n": 0}, {"n": 1}, {"n": 2}]


async def test_a_request_is_recorded_as_it_came(server: FaultServer, client: httpx.AsyncClient) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        yield b"ab"
        yield b"c"

    await client.post(server.url("/a?b=c"), content=pieces(), headers=[("X-Two", "1"), ("X-Two", "2")])
    (request,) = server.requests
    assert (request.method, request.path, request.body) == ("POST", "/a?b=c", b"abc")
    assert request.headers["x-two"] == "1, 2"
    assert server.received("/other") == []


async def test_a_path_without_a_script_is_unknown(server: FaultServer, client: httpx.AsyncClient) -> None:
    assert (await client.get(server.url("/nothing"))).status_code == 404


@pytest.mark.parametrize("reply", [Reply(200, b""), Reply(204), Reply(200, "text", chunked=True), Reply(200, [1])])
async def test_connections_are_reused(server: FaultServer, client: httpx.AsyncClient, reply: Reply) -> None:
    server.script("/", [reply])
    answers = [await client.get(server.url("/")) for _ in range(2)]
    assert [answer.content for answer in answers] == [reply.body_bytes()] * 2
    assert [request.connection for request in server.requests] == [1, 1]


@pytest.mark.parametrize(
    ("action", "error"),
    [
        (Reset(), httpx.ReadError),
        (Reset(after=b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{"), httpx.ReadError),
        (Raw(), httpx.RemoteProtocolError),
        (Raw(b""), httpx.RemoteProtocolError),
        (Raw(b"HTTP/1.1 200 OK\r\nContent-Length: five\r\n\r\n12345"), httpx.RemoteProtocolError),
        (TruncatedBody(), httpx.RemoteProtocolError),
        (Reply(200, {}, headers={"Content-Length": "3"}, closes=True), httpx.RemoteProtocolError),
        (huge_headers(), httpx.RemoteProtocolError),
        (EndlessHead(), httpx.RemoteProtocolError),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else type(value).__name__,
)
async def test_no_answer_can_be_read(
    server: FaultServer, client: httpx.AsyncClient, action: Action, error: type[httpx.HTTPError]
) -> None:
    server.script("/", [action])
    with pytest.raises(error):
        await client.post(server.url("/"), json={})
    assert len(server.requests) == 1


async def test_a_body_longer_than_its_length_is_cut_and_spoils_the_next_answer(
    server: FaultServer, client: httpx.AsyncClient
) -> None:
    server.script("/", [Reply(200, b"{}extra", headers={"Content-Length": "2"})])
    assert (await client.get(server.url("/"))).content == b"{}"


@pytest.mark.parametrize(
    "action",
    [NeverAnswers(), NeverAnswers(after=b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{")],
    ids=["no head", "half a body"],
)
async def test_never_answers_until_the_client_leaves(server: FaultServer, action: Action) -> None:
    server.script("/", [action])
    async with httpx.AsyncClient(timeout=None) as client:
        call = asyncio.create_task(client.get(server.url("/")))
        await server.wait_for_requests(1, "/")
        assert server.connections_open == 1
        assert not call.done()
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        await server.wait_until_left()
    assert server.connections_open == 0


@pytest.mark.parametrize("chunked", [True, False])
async def test_an_endless_body_ends_when_the_client_leaves(
    server: FaultServer, client: httpx.AsyncClient, chunked: bool
) -> None:
    server.script("/", [EndlessBody(chunked=chunked)])
    received = 0
    async with client.stream("GET", server.url("/")) as answer:
        async for piece in answer.aiter_raw():
            received += len(piece)
            if received > 4_000_000:
                break
    await server.wait_until_left()
    assert received > 4_000_000


@pytest.mark.parametrize("from_head", [True, False])
async def test_a_slow_body_beats_a_timeout_on_each_read(server: FaultServer, from_head: bool) -> None:
    server.script("/", [SlowBody(b'{"a": 1}', pause_s=0.001, from_head=from_head)])
    async with httpx.AsyncClient(timeout=5) as client, client.stream("GET", server.url("/")) as answer:
        pieces = [piece async for piece in answer.aiter_raw()]
    assert b"".join(pieces) == b'{"a": 1}'
    assert len(pieces) > 1


async def test_a_redirect_shows_who_follows(server: FaultServer, client: httpx.AsyncClient) -> None:
    server.script("/", [Redirect("/elsewhere")])
    server.script("/elsewhere", [Reply(200, {})])
    assert (await client.get(server.url("/"))).status_code == 302
    assert server.received("/elsewhere") == []
    assert (await client.get(server.url("/"), follow_redirects=True)).status_code == 200
    assert len(server.received("/elsewhere")) == 1


async def test_cookies_show_who_keeps_them(server: FaultServer, client: httpx.AsyncClient) -> None:
    server.script("/", [Reply(200, {}, headers={"Set-Cookie": "session=1"})])
    await client.get(server.url("/"))
    await client.get(server.url("/"))
    assert [request.headers.get("cookie") for request in server.requests] == [None, "session=1"]


@pytest.mark.parametrize("how", ["at once", "later"])
async def test_a_keep_alive_that_was_closed(server: FaultServer, client: httpx.AsyncClient, how: str) -> None:
    server.script("/", [Reply(200, {}, closes=how == "at once")])
    first = await client.get(server.url("/"))
    await (server.wait_until_left() if how == "at once" else server.close_idle())
    assert "connection" not in first.headers
    assert server.connections_open == 0
    assert (await client.get(server.url("/"))).status_code == 200
    assert [request.connection for request in server.requests] == [1, 2]


async def test_a_request_that_is_being_answered_is_not_idle(server: FaultServer, client: httpx.AsyncClient) -> None:
    server.script("/", [SlowBody(b"{}", pause_s=0.001)])
    call = asyncio.create_task(client.get(server.url("/")))
    await server.wait_for_requests(1)
    await server.close_idle()
    assert (await call).json() == {}


async def test_informational_answers_come_before_the_real_one(server: FaultServer) -> None:
    server.script("/", [Reply(200, {"a": 1}, informational=(100, 103))])
    answer = await raw_exchange(server, b"POST / HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n{}")
    assert [line.split()[1] for line in answer.splitlines() if line.startswith(b"HTTP/1.1 ")] == [
        b"100",  # as the request expected
        b"100",
        b"103",
        b"200",
    ]


async def test_a_gzip_bomb_is_small_until_it_is_unpacked(server: FaultServer, client: httpx.AsyncClient) -> None:
    server.script("/", [gzip_bomb(8_000_000)])
    answer = await client.get(server.url("/"))
    assert int(answer.headers["content-length"]) < 10_000
    assert len(answer.content) == 8_000_000


async def test_faults_before_any_request(server: FaultServer, client: httpx.AsyncClient) -> None:
    server.script("/", [Reply(200, {})])
    for url in (server.refused_url("/"), server.untrusted_url("/"), server.no_tls_url("/")):
        with pytest.raises(httpx.ConnectError):
            await client.get(url)
    assert server.requests == []


async def test_the_untrusted_server_answers_who_does_not_check(server: FaultServer) -> None:
    server.script("/", [Reply(200, {"a": 1})])
    async with httpx.AsyncClient(verify=False) as careless:
        assert (await careless.get(server.untrusted_url("/"))).json() == {"a": 1}


async def test_leaving_ends_what_is_under_way() -> None:
    async with httpx.AsyncClient(timeout=None) as client:
        async with FaultServer() as server:
            server.script("/", [NeverAnswers()])
            call = asyncio.create_task(client.get(server.url("/")))
            await server.wait_for_requests(1)
        with pytest.raises(httpx.HTTPError):
            await call
    assert server.connections_open == 0


async def raw_exchange(server: FaultServer, request: bytes) -> bytes:
    """Everything that the server sends until it has nothing more to say to a client that has finished."""
    address = httpx.URL(server.url())
    reader, writer = await asyncio.open_connection(address.host, address.port)
    writer.write(request)
    writer.write_eof()
    answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    return answer
