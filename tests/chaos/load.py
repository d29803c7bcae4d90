"""The clients: begin, repeat, wait, cancel and ask at random replicas, and write down what they were told.

`python -m tests.chaos.load ARGUMENTS`, in JSON. SIGTERM: nobody begins anything more, and it ends when all have
been answered. A client does what a careful one would: it repeats with the same key until somebody answers.
"""

import asyncio
import json
import os
import random
import signal
import sys
import time
from collections import deque
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

from pyreqwest.client import Client, ClientBuilder
from pyreqwest.exceptions import PyreqwestError

from tests.chaos.keys import ShownKey
from tests.harness.notes import Notebook, note_of, transaction_in

REQUEST_TIMEOUT_S: Final = 4.0
WAIT_S: Final = 2
PAUSE_S: Final = (0.1, 0.8)
RECENT: Final = 500
UNANSWERED: Final = (0, 500, 502, 503, 504)
LAST_WORDS_MAX_S: Final = 50.0
BODY_MAX_BYTES: Final = 1_048_576
"""HOLDFAST_BODY_MAX_BYTES, as it is by default."""
AT_THE_LIMIT: Final = 0.001
"""The share of requests that are exactly that long."""
"""How long clients go on asking about what they began after they were told to stop."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    status: int
    document: Any
    sent_at: float
    seen_at: float
    replica: int


class Crowd:
    """All clients: what they share."""

    def __init__(self, arguments: dict[str, Any], client: Client) -> None:
        self._urls: list[str] = arguments["urls"]
        self._participants: list[str] = arguments["participants"]
        self._accounts: int = arguments["accounts"]
        self._seed: str = arguments["seed"]
        self._client = client
        self._notebook = Notebook(Path(arguments["folder"]) / "clients.jsonl")
        self._shown_key = ShownKey(Path(arguments["folder"]))
        self._recent: deque[str] = deque(maxlen=RECENT)
        self.stopping = asyncio.Event()

    async def run(self, clients: int) -> None:
        everybody = [asyncio.create_task(self._live(number)) for number in range(clients)]
        await self.stopping.wait()
        await asyncio.wait(everybody, timeout=LAST_WORDS_MAX_S)
        for task in everybody:
            task.cancel()
        for result in await asyncio.gather(*everybody, return_exceptions=True):
            if isinstance(result, Exception):
                raise result

    async def _live(self, number: int) -> None:
        draw = random.Random(f"{self._seed}:client:{number}")
        count = 0
        while not self.stopping.is_set():
            count += 1
            await self._transfer(draw, f"client-{number}-{count}")

    async def _transfer(self, draw: random.Random, key: str) -> None:
        """One transaction, from its beginning until its end is known or the client loses interest."""
        body = self._body(draw, key)
        headers = {"Idempotency-Key": f'"{key}"', "Prefer": f"wait={WAIT_S}", "Content-Type": "application/json"}
        if draw.random() < 0.03:  # impatient: the same at two replicas at once
            await asyncio.gather(*(self._begin(draw, key, body, headers) for _ in range(2)))
        begun = await self._until_answered(draw, key, body, headers)
        transaction = transaction_in(begun.document)
        if transaction is None:
            return  # 4xx other than 409: noted, and for the checker to judge
        self._recent.append(transaction["id"])
        if draw.random() < 0.04:
            await self._ask(draw, "cancel", transaction["id"], key)
        while transaction["outcome"] is None and draw.random() < 0.9:
            reply = await self._ask(draw, "get", transaction["id"], key)
            if reply.status == 200:
                transaction = reply.document
            elif reply.status in UNANSWERED:
                await self._pause(draw)
            else:
                return
        if draw.random() < 0.2:
            await self._ask(draw, "decision", draw.choice(self._recent))
        if draw.random() < 0.02:  # the same once more, long after
            await self._begin(draw, key, body, headers)

    async def _until_answered(self, draw: random.Random, key: str, body: bytes, headers: dict[str, str]) -> Reply:
        while True:
            reply = await self._begin(draw, key, body, headers)
            if reply.status not in UNANSWERED:
                return reply
            await self._pause(draw)

    async def _begin(self, draw: random.Random, key: str, body: bytes, headers: dict[str, str]) -> Reply:
        reply = await self._request(draw, "POST", "/v1/transactions", body, headers)
        self._write("begin", reply, key)
        return reply

    async def _ask(self, draw: random.Random, kind: str, transaction_id: str, key: str | None = None) -> Reply:
        path, headers = f"/v1/transactions/{transaction_id}", {}
        if kind == "get":
            headers = {"Prefer": f"wait={WAIT_S}"}
        else:
            path += f"/{kind}"
        reply = await self._request(draw, "POST" if kind == "cancel" else "GET", path, None, headers)
        self._write(kind, reply, key, transaction_id)
        return reply

    def _write(self, kind: str, reply: Reply, key: str | None, transaction_id: str | None = None) -> None:
        note = note_of(
            kind,
            reply.document,
            replica=reply.replica,
            sent_at=reply.sent_at,
            seen_at=reply.seen_at,
            status=reply.status,
            key=key,
            transaction_id=transaction_id,
        )
        self._notebook.write(note)

    async def _request(
        self, draw: random.Random, method: str, path: str, body: bytes | None, headers: dict[str, str]
    ) -> Reply:
        replica = draw.randrange(len(self._urls))
        sent_at = time.monotonic()
        shown = headers | self._shown_key.headers()
        builder = self._client.request(method, self._urls[replica] + path).headers(shown)
        if body is not None:
            builder = builder.body_bytes(body)
        try:
            response = await builder.build().send()
            content = bytes(await response.bytes())
            status, document = response.status, json.loads(content) if content else None
        except (PyreqwestError, ValueError):
            status, document = 0, None
        return Reply(status=status, document=document, sent_at=sent_at, seen_at=time.monotonic(), replica=replica)

    async def _pause(self, draw: random.Random) -> None:
        never = asyncio.get_running_loop().create_future()
        await asyncio.wait([never], timeout=draw.uniform(*PAUSE_S))

    def _body(self, draw: random.Random, key: str) -> bytes:
        """Money moves from one service to one or two others, or within one; some ask for more than there is."""
        amount = 10_000_000 if draw.random() < 0.02 else draw.randint(2, 60)
        places = draw.sample(self._participants, 3 if draw.random() < 0.1 else 2)
        if draw.random() < 0.1:
            places[1] = places[0]
        shares = [amount] if len(places) == 2 else [amount // 2, amount - amount // 2]
        movements = [("debit", places[0], amount)]
        movements += [("credit", place, share) for place, share in zip(places[1:], shares, strict=True)]
        branches: list[dict[str, Any]] = [
            {
                "name": f"{kind}-{number}",
                "participant": place,
                "payload": {
                    "kind": kind,
                    "account": draw.randrange(self._accounts),
                    "amount": share,
                    "note": "x" * _note_chars(draw),
                },
            }
            for number, (kind, place, share) in enumerate(movements)
        ]
        asked = {
            "name": "transfer",
            "reference": key,
            "timeout_s": draw.choice([1, 4, 6, 10]),
            "try_order": draw.choice(["parallel", "parallel", "sequential"]),
            "answer_at": draw.choice(["end", "end", "end", "decision", "record"]),
            "branches": branches,
        }
        if draw.random() < AT_THE_LIMIT:
            branches[0]["payload"]["note"] = ""
            branches[0]["payload"]["note"] = "x" * (BODY_MAX_BYTES - len(json.dumps(asked)))
        return json.dumps(asked).encode()


def _note_chars(draw: random.Random) -> int:
    """Mostly nothing, and else any order of magnitude."""
    return int(10 ** draw.uniform(0, 4.5)) if draw.random() < 0.1 else 0


async def main() -> None:
    arguments = json.loads(sys.argv[1])
    builder = ClientBuilder().timeout(timedelta(seconds=REQUEST_TIMEOUT_S)).follow_redirects(False).no_proxy()
    async with builder.http1_only().max_connections(None).error_for_status(False).build() as client:
        crowd = Crowd(arguments, client)
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, crowd.stopping.set)
        await crowd.run(arguments["clients"])


if __name__ == "__main__":
    asyncio.run(main())
    os._exit(0)  # the client's threads may still be at work, and the interpreter would stumble over them
