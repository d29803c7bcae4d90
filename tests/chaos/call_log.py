"""What arrives at a participant and what is answered, written down outside the fence; and faults on the way.

The fence hides conflicting calls by answering 409, so the log is written by ASGI middleware around it: one line
before the work, one after. A line goes to the kernel at once, so SIGKILL loses none.
"""

import asyncio
import os
import random
import time
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

from tests.harness.evidence import Request

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

OPERATIONS: Final = frozenset({"try", "confirm", "cancel"})


class Fault(StrEnum):
    """What goes wrong with one request."""

    NONE = "none"
    SLOW = "slow"  # answered late, but in time
    STALL = "stall"  # the work begins when the caller has given up
    FAIL_BEFORE = "fail-before"  # 500, nothing was done
    FAIL_AFTER = "fail-after"  # 500, but the work was done
    CUT = "cut"  # the connection ends in the middle of the answer


CHANCES: Final = {
    Fault.SLOW: 0.04,
    Fault.STALL: 0.015,
    Fault.FAIL_BEFORE: 0.015,
    Fault.FAIL_AFTER: 0.01,
    Fault.CUT: 0.01,
}
REFUSAL_CHANCE: Final = 0.02
SLOW_S: Final = (0.05, 0.5)
STALL_S: Final = (1.6, 3.5)


class Faults:
    """Draws faults while the file `on` exists, from a random source of this process's own."""

    def __init__(self, on: Path, seed: str) -> None:
        self._on = on
        self._random = random.Random(seed)

    def draw(self) -> Fault:
        drawn = self._random.random()
        for fault, chance in CHANCES.items():
            drawn -= chance
            if drawn < 0:
                return fault if self._on.exists() else Fault.NONE
        return Fault.NONE

    def refuses(self) -> bool:
        return self._random.random() < REFUSAL_CHANCE and self._on.exists()

    async def delay(self, fault: Fault) -> None:
        if fault in (Fault.SLOW, Fault.STALL):
            delay_s = self._random.uniform(*(SLOW_S if fault is Fault.SLOW else STALL_S))
            never = asyncio.get_running_loop().create_future()
            await asyncio.wait([never], timeout=delay_s)


class RequestLog:
    """Appends to a file of this process's own."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        self._count = 0

    def arrived(self, operation: str, transaction_id: str, branch: str, attempt: str) -> int:
        self._count += 1
        self._line("A", self._count, operation, transaction_id, branch, attempt)
        return self._count

    def answered(self, number: int, status: int, fault: Fault) -> None:
        self._line("R", number, status, fault.value)

    def _line(self, *fields: object) -> None:
        os.write(self._file, "\t".join(map(str, (time.monotonic(), *fields))).encode() + b"\n")


def read_log(path: Path, participant: str) -> Iterator[Request]:
    """The requests of one process, in the order of their arrival."""
    arrived: dict[str, list[str]] = {}
    answered: dict[str, list[str]] = {}
    for line in path.read_text().splitlines():
        at, mark, number, *rest = line.split("\t")
        (arrived if mark == "A" else answered)[number] = [at, *rest]
    for number, (at, operation, transaction_id, branch, attempt) in arrived.items():
        end, status, fault = answered.get(number, (None, None, Fault.NONE))
        yield Request(
            participant=participant,
            operation=operation,
            transaction_id=transaction_id,
            branch=branch,
            attempt=int(attempt),
            arrived_at=float(at),
            answered_at=None if end is None else float(end),
            status=None if status is None else int(status),
            fault=fault or Fault.NONE,
        )


class CallLogMiddleware:
    """Middleware: logs each call, and lets it go wrong."""

    def __init__(self, app: App, *, log: RequestLog, faults: Faults) -> None:
        self._app = app
        self._log = log
        self._faults = faults

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        operation = scope["path"].rpartition("/")[2] if scope["type"] == "http" else ""
        if operation not in OPERATIONS:
            await self._app(scope, receive, send)
            return
        headers = {name: value.decode() for name, value in scope["headers"]}
        number = self._log.arrived(
            operation, headers[b"tcc-transaction-id"], headers[b"tcc-branch"], headers[b"tcc-attempt"]
        )
        body = await _whole_body(receive)
        fault = self._faults.draw()
        await self._faults.delay(fault)
        if fault is Fault.FAIL_BEFORE:
            self._log.answered(number, 500, fault)
            await _answer(send, 500)
            return
        answer: list[MutableMapping[str, Any]] = []

        async def keep(message: MutableMapping[str, Any]) -> None:
            answer.append(message)

        async def replay() -> MutableMapping[str, Any]:
            return body.pop(0) if body else await receive()

        await self._app(scope, replay, keep)
        self._log.answered(number, answer[0]["status"], fault)
        match fault:
            case Fault.FAIL_AFTER:
                await _answer(send, 500)
            case Fault.CUT:
                await _cut(send, answer)
            case _:
                for message in answer:
                    await send(message)


async def _whole_body(receive: Receive) -> list[MutableMapping[str, Any]]:
    """Taken before any delay: when the caller has given up, the work is done all the same, only late."""
    messages = [await receive()]
    while messages[-1].get("more_body"):
        messages.append(await receive())
    return messages


async def _answer(send: Send, status: int) -> None:
    await send({"type": "http.response.start", "status": status, "headers": [(b"content-length", b"0")]})
    await send({"type": "http.response.body", "body": b""})


async def _cut(send: Send, answer: list[MutableMapping[str, Any]]) -> None:
    """Promise more than comes: the server closes the connection when the application returns."""
    start = dict(answer[0])
    start["headers"] = [
        (name, b"1000") if name == b"content-length" else (name, value) for name, value in start["headers"]
    ]
    await send(start)
    await send({"type": "http.response.body", "body": b"{", "more_body": True})
