"""One participant process: the real SDK on a real database. `python -m tests.chaos.participant CONFIG`, in JSON."""

import json
import random
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import uvicorn
from anyio import to_thread
from fastapi import FastAPI

from holdfast import Participant
from holdfast.json_text import parsed
from tests.chaos.call_log import CallLogMiddleware, Faults, RequestLog
from tests.chaos.keys import ShownKey
from tests.harness import ledger
from tests.harness.notes import Notebook, note_of

REAP_INTERVAL_S = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """What one participant process is told. `life` counts its starts: each has log files of its own."""

    name: str
    port: int
    life: int
    seed: str
    folder: str
    database_url: str
    replica_ports: list[int]
    hold_ttl_max_s: float | None


class AnyReplica(httpx.AsyncBaseTransport):
    """Puts each question to a replica drawn at random, and writes down what it said."""

    def __init__(self, ports: list[int], notebook: Notebook, shown_key: ShownKey) -> None:
        self._shown_key = shown_key
        self._ports = ports
        self._notebook = notebook
        self._inner = httpx.AsyncHTTPTransport(verify=False)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        replica = random.randrange(len(self._ports))
        transaction_id = request.url.path.split("/")[-2]
        request.url = request.url.copy_with(port=self._ports[replica])
        request.headers.update(self._shown_key.headers())
        sent_at = time.monotonic()
        response = await self._inner.handle_async_request(request)
        content = await response.aread()
        body = parsed(content)
        note = note_of(
            "inquiry",
            body,
            replica=replica,
            sent_at=sent_at,
            seen_at=time.monotonic(),
            status=response.status_code,
            transaction_id=transaction_id,
        )
        self._notebook.write(note)
        return httpx.Response(response.status_code, content=content)

    async def aclose(self) -> None:
        await self._inner.aclose()


def main() -> None:
    config = Config(**json.loads(sys.argv[1]))
    folder = Path(config.folder)
    faults = Faults(folder / "faults-on", f"{config.seed}:{config.name}:{config.life}")
    notebook = Notebook(folder / f"inquiries-{config.name}-{config.life}.jsonl")
    participant = Participant(
        config.name,
        ledger.open_database(config.database_url),
        coordinator_url=f"http://127.0.0.1:{config.replica_ports[0]}",
        transport=AnyReplica(config.replica_ports, notebook, ShownKey(folder)),
        hold_ttl_max_s=config.hold_ttl_max_s,
        reap_interval_s=REAP_INTERVAL_S,
        ask_timeout_s=2.0,
    )
    ledger.attach(participant, refuses=faults.refuses)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        to_thread.current_default_thread_limiter().total_tokens = ledger.connections_of(config.database_url)
        async with participant.lifespan(app):
            print(f"running on http://127.0.0.1:{config.port}", flush=True)
            yield

    app = FastAPI(lifespan=lifespan, openapi_url=None)
    app.include_router(participant.router, prefix="/tcc")
    log = RequestLog(folder / f"requests-{config.name}-{config.life}.tsv")
    app.add_middleware(CallLogMiddleware, log=log, faults=faults)
    uvicorn.run(app, host="127.0.0.1", port=config.port, log_level="critical", access_log=False, proxy_headers=False)


if __name__ == "__main__":
    main()
