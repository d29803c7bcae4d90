"""The coordinator's ASGI application, whole and real but for the wire: participants are scripted.

    service.participants.script("/inventory/try", [reply(503), reply(200, {"hold_id": "h-1"})])
    begun = await service.begin({"branches": [{"participant": "inventory"}]})

A path plays its script one reaction a request and stays at the last one; a path without a script succeeds.
"""

import asyncio
import json
import sqlite3
import tempfile
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Final

import httpx
from fastapi import FastAPI
from sqlalchemy import func, make_url, select

from app.api.dependencies import Parts
from app.clock import wall_s
from app.main import create_app
from app.settings import Settings
from app.storage import tables
from app.storage.migrations import migrate

WAIT_TIMEOUT_S: Final = 20.0
TABLES: Final = (tables.transactions, tables.branches, tables.hung_branches, tables.calls)
Json = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Received:
    """One call, as a participant sees it."""

    url: str
    path: str
    headers: httpx.Headers
    content: bytes

    @property
    def body(self) -> Json:
        body: Json = json.loads(self.content)
        return body


Reaction = Callable[[Received], Awaitable[httpx.Response]]


def reply(status: int = 200, body: Any = None, **headers: str) -> Reaction:
    """Answer so. `body`: text goes out as it is, None is empty, anything else as JSON; `tcc_hold_ttl="2"` a header."""
    names = {name.replace("_", "-"): value for name, value in headers.items()}

    async def react(_: Received) -> httpx.Response:
        if body is None or isinstance(body, str):
            return httpx.Response(status, headers=names, text=body or "")
        return httpx.Response(status, headers=names, json=body)

    return react


def lost(error: type[httpx.TransportError] = httpx.ConnectError) -> Reaction:
    """No answer comes."""

    async def react(_: Received) -> httpx.Response:
        raise error("as scripted")

    return react


class Gate:
    """A reaction that waits until it is opened; `await gate.reached()` returns once somebody waits there."""

    def __init__(self, then: Reaction | None = None) -> None:
        self._then = then or reply(200, {})
        self._reached = asyncio.Event()
        self._open = asyncio.Event()

    async def __call__(self, received: Received) -> httpx.Response:
        self._reached.set()
        await self._open.wait()
        return await self._then(received)

    async def reached(self) -> None:
        async with asyncio.timeout(WAIT_TIMEOUT_S):
            await self._reached.wait()

    def open(self) -> None:
        self._open.set()


class Participants:
    """All participants, behind one transport."""

    def __init__(self) -> None:
        self.received: list[Received] = []
        self.transport = httpx.MockTransport(self._handle)
        self._scripts: dict[str, list[Reaction]] = {}

    def script(self, path: str, reactions: Sequence[Reaction]) -> None:
        assert reactions, "a script has at least one reaction"
        self._scripts[path] = list(reactions)

    def paths(self) -> list[str]:
        return [each.path for each in self.received]

    def at(self, path: str) -> list[Received]:
        return [each for each in self.received if each.path == path]

    async def _handle(self, request: httpx.Request) -> httpx.Response:
        received = Received(
            url=str(request.url), path=request.url.path, headers=request.headers, content=request.content
        )
        self.received.append(received)
        script = self._scripts.get(received.path, [reply(200, {})])
        return await (script.pop(0) if len(script) > 1 else script[0])(received)


@dataclass(kw_only=True)
class Service:
    """A running coordinator, a client of it, and what its participants do."""

    app: FastAPI
    client: httpx.AsyncClient
    participants: Participants = field(default_factory=Participants)

    @property
    def parts(self) -> Parts:
        parts: Parts = self.app.state.parts
        return parts

    async def register(self, *names: str, **body: Any) -> None:
        for name in names:
            answer = await self.client.put(f"/v1/participants/{name}", json={"base_url": base_url(name)} | body)
            assert answer.status_code in (200, 201), answer.text

    async def begin(self, request: Json, **headers: str) -> httpx.Response:
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        return await self.client.post("/v1/transactions", json=request, headers=names)

    async def get(self, transaction_id: str) -> Json:
        return await self.json(f"/v1/transactions/{transaction_id}")

    async def json(self, path: str, **query: Any) -> Json:
        answer = await self.client.get(path, params=query)
        assert answer.status_code == 200, answer.text
        body: Json = answer.json()
        return body

    async def rows(self) -> dict[str, int]:
        """How many rows each table has that a transaction leaves traces in."""
        counts = {}
        for table in TABLES:
            query = select(func.count()).select_from(table)
            counts[table.name] = await self.parts.journal.read(lambda c, q=query: c.execute(q).scalar_one())
        return counts

    async def until(self, transaction_id: str, holds: Callable[[Json], object]) -> Json:
        """The transaction as soon as `holds` says so of it."""
        found: Json = {}

        async def look() -> object:
            nonlocal found
            found = await self.get(transaction_id)
            return holds(found)

        await until(look)
        return found

    async def until_finished(self, transaction_id: str) -> Json:
        return await self.until(transaction_id, lambda transaction: transaction["finished_at"])


async def until(holds: Callable[[], Awaitable[object]]) -> None:
    """Return as soon as `holds` is true, which is looked at again and again, and fail when it never is."""
    async with asyncio.timeout(WAIT_TIMEOUT_S):
        while not await holds():  # noqa: ASYNC110 - what is looked at has no event
            await asyncio.sleep(0)


def base_url(name: str) -> str:
    """Where the participant of this name is: its paths are /<name>/try, /confirm and /cancel."""
    return f"http://127.0.0.1:9000/{name}"


def endpoints(name: str) -> Json:
    return {operation: f"{base_url(name)}/{operation}" for operation in ("try", "confirm", "cancel")}


@asynccontextmanager
async def running(
    database_url: str, *, clock: Callable[[], float] = wall_s, follows_database: bool = True, **settings: Any
) -> AsyncIterator[Service]:
    """A coordinator with impatient timings, at work while entered; `settings` override them.

    `clock` is the clock of its machine. On a database server it counts for nothing, if the database's is followed.
    """
    impatient: Mapping[str, Any] = {
        "retry_base_s": 0.001,
        "retry_cap_s": 0.01,
        "call_timeout_s": 10.0,
        "shutdown_timeout_s": 0.2,
    }
    _prepare(database_url)
    participants = Participants()
    app = create_app(
        Settings(database_url=database_url, **{**impatient, **settings}),
        transport=participants.transport,
        clock=clock,
        follows_database=follows_database,
    )
    async with app.router.lifespan_context(app):
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost", timeout=None) as client:
            yield Service(app=app, client=client, participants=participants)


def _prepare(database_url: str) -> None:
    """Copy the newest schema to a new SQLite file: to make it anew costs as much as the shortest tests take."""
    url = make_url(database_url)
    if url.get_backend_name() == "sqlite" and url.database and not Path(url.database).exists():
        Path(url.database).write_bytes(_empty_database())
        with closing(sqlite3.connect(url.database)) as connection:
            connection.execute("UPDATE coordinator SET id = ?", [str(uuid.uuid4())])
            connection.commit()


@cache
def _empty_database() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "empty.db"
        migrate(f"sqlite:///{file}")
        return file.read_bytes()


def check_problem(answer: httpx.Response, status: int, slug: str) -> Json:
    """The problem document in `answer`, which must be one of this kind and say what to do."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    body: Json = answer.json()
    assert body["type"] == f"/problems/{slug}", body
    assert body["status"] == status
    assert body["title"]
    assert body["detail"]
    return body
