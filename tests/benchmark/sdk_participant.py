"""What a participant's call costs: the SDK, async and sync, against a hand-written endpoint with an idempotency row.

python -m tests.benchmark.sdk_participant       # CPU of the service's process per call, on PostgreSQL

Each branch is tried and confirmed, straight through ASGI in this process, so neither a client nor a web server counts;
the database server's CPU does not count either. Rounds of the three are interleaved; the median of each is shown.
"""

import argparse
import asyncio
import json
import statistics
import time
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Final

from fastapi import FastAPI, Request
from sqlalchemy import create_engine, make_url, text
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session

from holdfast import Hold, Participant
from tests.harness.asgi import JSON, ask
from tests.harness.postgres import PostgresServer

CLIENTS: Final = 4
COORDINATOR: Final = "http://127.0.0.1:9"
_EFFECT: Final = text("UPDATE stock SET free = free - 1 WHERE id = :id")
_KEEP: Final = text("INSERT INTO handled (id, answer) VALUES (:id, '{}') ON CONFLICT DO NOTHING")

Case = Callable[[str], AbstractAsyncContextManager[FastAPI]]


@asynccontextmanager
async def sdk_async(url: str) -> AsyncIterator[FastAPI]:
    """The SDK on asyncpg."""
    engine = create_async_engine(make_url(url).set(drivername="postgresql+asyncpg"))
    participant = Participant("stock", engine, coordinator_url=COORDINATOR)

    async def change(hold: Hold[dict[str, int]], session: AsyncSession) -> None:
        await session.execute(_EFFECT, {"id": hold.payload["id"]})

    participant.on_try(change)
    participant.on_confirm(change)
    async with participant.lifespan():
        yield _mounting(participant)
    await engine.dispose()


@asynccontextmanager
async def sdk_sync(url: str) -> AsyncIterator[FastAPI]:
    """The SDK on psycopg, in threads."""
    engine = create_engine(url)
    participant = Participant("stock", engine, coordinator_url=COORDINATOR)

    def change(hold: Hold[dict[str, int]], session: Session) -> None:
        session.execute(_EFFECT, {"id": hold.payload["id"]})

    participant.on_try(change)
    participant.on_confirm(change)
    async with participant.lifespan():
        yield _mounting(participant)
    engine.dispose()


@asynccontextmanager
async def hand_written(url: str) -> AsyncIterator[FastAPI]:
    """What people write without the SDK: a row for each call, in the transaction of the effect. On asyncpg."""
    engine = create_async_engine(make_url(url).set(drivername="postgresql+asyncpg"))
    app = FastAPI()

    async def handle(request: Request) -> dict[str, str]:
        message = await request.json()
        async with AsyncSession(engine) as session:
            key = f"{message['transaction_id']}:{message['branch']}:{request.url.path}"
            if (await session.execute(_KEEP, {"id": key})).rowcount:  # type: ignore[attr-defined]
                await session.execute(_EFFECT, {"id": message["payload"]["id"]})
            await session.commit()
        return {}

    for path in ("/try", "/confirm"):
        app.add_api_route(path, handle, methods=["POST"])
    yield app
    await engine.dispose()


CASES: Final[dict[str, Case]] = {"SDK, async": sdk_async, "SDK, sync": sdk_sync, "hand-written": hand_written}


async def measure(case: Case, url: str, *, branches: int) -> float:
    """Milliseconds of this process's CPU per call."""
    async with case(url) as app:
        await _run(app, branches=CLIENTS * 5)
        before_s = time.process_time()
        await _run(app, branches=branches)
        return (time.process_time() - before_s) / (2 * branches) * 1000


def prepare(url: str) -> None:
    """The tables of the effect and of the hand-written endpoint."""
    engine = create_engine(url)
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE stock (id INTEGER PRIMARY KEY, free INTEGER NOT NULL)"))
        connection.execute(
            text("INSERT INTO stock SELECT n, 0 FROM generate_series(0, :last) n"), {"last": CLIENTS - 1}
        )
        connection.execute(text("CREATE TABLE handled (id TEXT PRIMARY KEY, answer TEXT NOT NULL)"))
    engine.dispose()


def taken(url: str) -> int:
    """How many calls have had their effect."""
    engine = create_engine(url)
    with engine.connect() as connection:
        found = connection.scalar(text("SELECT -sum(free) FROM stock"))
    engine.dispose()
    return int(found or 0)


async def _run(app: FastAPI, *, branches: int) -> None:
    """Clients with a stock row each, so that they don't wait for each other."""

    async def client(number: int) -> None:
        for _ in range(branches // CLIENTS):
            message = {"transaction_id": str(uuid.uuid4()), "branch": "stock", "payload": {"id": number}}
            body = json.dumps(message).encode()
            for path in ("/try", "/confirm"):
                answer = await ask(app, "POST", path, headers=[JSON], body=[body])
                assert answer.status == 200, answer

    await asyncio.gather(*(client(number) for number in range(CLIENTS)))


def _mounting(participant: Participant) -> FastAPI:
    app = FastAPI()
    app.include_router(participant.router)
    return app


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--branches", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    figures: dict[str, list[float]] = {name: [] for name in CASES}
    with PostgresServer() as server:
        url = server.create_database()
        prepare(url)
        for _ in range(options.rounds):
            for name, case in CASES.items():
                figures[name].append(asyncio.run(measure(case, url, branches=options.branches)))
        _check(taken(url), options)
    for name, found in figures.items():
        print(
            f"{name:14} {statistics.median(found):6.2f} ms of CPU per call   ({', '.join(f'{ms:.2f}' for ms in found)})"
        )


def _check(effects: int, options: Any) -> None:
    expected = len(CASES) * options.rounds * 2 * (CLIENTS * 5 + options.branches)
    if effects != expected:
        raise SystemExit(
            f"{expected} calls were answered 200, and {effects} had their effect: the figures are worth nothing"
        )


if __name__ == "__main__":
    main()
