"""How long a command takes that another replica has to carry out, until its effect and until it is answered.

    python -m tests.benchmark.commands [how many]

Two coordinators run as processes on one PostgreSQL. A transaction is begun at one; it has a participant that holds at
once, and one that is slow to answer. The other coordinator is asked to cancel it. The effect is the Cancel that arrives
at the first participant. Prints median, p99 and maximum in milliseconds.
"""

import asyncio
import json
import statistics
import sys
import time
from contextlib import AsyncExitStack
from typing import Final

import httpx

from tests.benchmark.databases import Database, databases
from tests.harness.coordinator_process import CoordinatorProcess

COUNT: Final = 300
ANSWER: Final = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"


class Participants:
    """Both participants: `/quick` answers at once, `/slow` answers a Try when it is released."""

    def __init__(self) -> None:
        self.tried = asyncio.Event()
        self.released = asyncio.Event()
        self.cancelled_at: asyncio.Future[float] = asyncio.get_running_loop().create_future()

    def renew(self) -> None:
        """Before each transaction."""
        self.__init__()  # type: ignore[misc]

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, and the requests on it."""
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = next(
                    int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")
                )
                await reader.readexactly(length)
                path = head.split(b" ", 2)[1]
                if path == b"/slow/try":
                    self.tried.set()
                    await self.released.wait()
                elif path == b"/quick/cancel" and not self.cancelled_at.done():
                    self.cancelled_at.set_result(time.perf_counter())
                writer.write(ANSWER)
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            writer.close()  # its coordinator has ended, or all has


async def measured(database: Database, count: int) -> tuple[list[float], list[float]]:
    """Milliseconds until the effect, and until the answer, of each command."""
    effects: list[float] = []
    answers: list[float] = []
    participants = Participants()
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(await asyncio.start_server(participants.serve, "127.0.0.1", 0))
        port = server.sockets[0].getsockname()[1]
        bases = {name: f"http://127.0.0.1:{port}/{name}" for name in ("quick", "slow")}
        settings = {"HOLDFAST_DATABASE_URL": database.url, "HOLDFAST_PARTICIPANTS": json.dumps(bases)}
        one, two = CoordinatorProcess(settings), CoordinatorProcess(settings)
        for process in (one, two):
            await asyncio.to_thread(process.start)
            stack.callback(process.__exit__)
        client = await stack.enter_async_context(httpx.AsyncClient(timeout=30))
        branches = [{"participant": name, "payload": {}} for name in bases]
        for _ in range(count):
            participants.renew()
            begun = await client.post(
                f"{one.url}/v1/transactions", json={"branches": branches}, headers={"Prefer": "respond-async"}
            )
            await participants.tried.wait()
            began = time.perf_counter()
            answer = await client.post(f"{two.url}/v1/transactions/{begun.json()['id']}/cancel")
            answers.append(1000 * (time.perf_counter() - began))
            assert answer.status_code == 200, answer.text
            effects.append(1000 * (await participants.cancelled_at - began))
            participants.released.set()
        server.close()
    return effects, answers


def told(what: str, times_ms: list[float]) -> str:
    """A line about these times."""
    p99 = statistics.quantiles(times_ms, n=100)[98]
    return f"{what}: median {statistics.median(times_ms):.1f} ms, p99 {p99:.1f} ms, maximum {max(times_ms):.1f} ms"


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else COUNT
    with databases() as made:
        database = made.postgres()
        database.migrate()
        effects, answers = asyncio.run(measured(database, count))
    print(f"{count} commands, PostgreSQL, each at the replica that isn't working on the transaction")
    print(told("until the effect", effects))
    print(told("until the answer", answers))


if __name__ == "__main__":
    main()
