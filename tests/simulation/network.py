"""Messages between processes, and what becomes of them.

A request that has left arrives, or doesn't, whatever becomes of whoever sent it. Knows nothing of what is inside.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import httpx

from tests.simulation.faults import Branch, Fault, Plan
from tests.simulation.scheduler import Process, Scheduler

LATENCY_S = (0.001, 0.02)
DELAY_S = (0.05, 1.5)
LATE_S = (0.6, 2.5)

Serve = Callable[[Any], Awaitable[Any]]


@dataclass(slots=True)
class Reply:
    status: int
    headers: list[tuple[bytes, bytes]]
    body: bytes


class Network:
    """`places` says for each name which process answers there now, and how; None when nobody listens."""

    def __init__(self, loop: Scheduler, plan: Plan, tell: Callable[..., None]) -> None:
        self._loop = loop
        self._plan = plan
        self._tell = tell
        self.places: dict[str, Callable[[], tuple[Process, Serve] | None]] = {}
        self.severed: set[tuple[str, str]] = set()
        self._sent: dict[Any, int] = {}
        self._arrived: dict[Any, int] = {}

    async def exchange(
        self, source: str, target: str, request: Any, topic: Any, label: str, *, leaves_in_s: float = 0.0
    ) -> Any:
        """Send, and wait for the answer; raises when the connection fails, and waits for ever when nothing comes."""
        answer: asyncio.Future[Any] = self._loop.create_future()
        number = self._sent[topic] = self._sent.get(topic, 0) + 1
        if (source, target) in self.severed or self._plan.hits(Fault.LOST_BEFORE):
            self._tell("lost before", source, target, label)
            self._fail(answer)
        else:
            copies = 2 if self._plan.hits(Fault.DUPLICATED) else 1
            for _ in range(copies):
                delay_s = leaves_in_s + self._latency_s()
                self._later(delay_s, self._arrive, source, target, request, topic, number, label, answer)
        return await answer

    def notify(self, target: str, arrived: Callable[[], None]) -> None:
        """Have `arrived` run at `target`, if a process listens there by then."""
        self._later(self._latency_s(), self._arrive_unasked, target, arrived)

    def _arrive_unasked(self, target: str, arrived: Callable[[], None]) -> None:
        place = self.places[target]()
        if place is not None and not place[0].dead:
            self._loop.call_soon(arrived, context=place[0].context)

    def _arrive(self, source: str, target: str, request: Any, topic: Any, number: int, label: str, answer: Any) -> None:
        place = self.places[target]()
        if place is None or place[0].dead:
            self._fail(answer)
            return
        if number < self._arrived.get(topic, 0):
            self._plan.count(Branch.REORDERED)
        self._arrived[topic] = max(number, self._arrived.get(topic, 0))
        process, serve = place
        self._tell("arrives", source, process.name, label)
        process.spawn(self._serve(source, target, serve, request, label, answer))

    async def _serve(
        self, source: str, target: str, serve: Serve, request: Any, label: str, answer: "asyncio.Future[Any]"
    ) -> None:
        reply = await serve(request)
        if (target, source) in self.severed or self._plan.hits(Fault.LOST_AFTER):
            self._tell("lost after", target, source, label)
            self._fail(answer)
            return
        delay_s = self._latency_s()
        if self._plan.hits(Fault.LATE_ANSWER):
            delay_s += self._loop.draw.uniform(*LATE_S)
        self._later(delay_s, _answer, answer, reply)

    def _fail(self, answer: "asyncio.Future[Any]") -> None:
        """Reset, or silence."""
        if self._loop.draw.random() < 0.5:
            self._later(self._latency_s(), _reset, answer)

    def _latency_s(self) -> float:
        latency_s = self._loop.draw.uniform(*LATENCY_S)
        if self._plan.hits(Fault.DELAYED):
            latency_s += self._loop.draw.uniform(*DELAY_S)
        return latency_s

    def _later(self, delay_s: float, callback: Callable[..., None], *args: Any) -> None:
        self._loop.call_later(delay_s, callback, *args, context=self._loop.world.context)


def _answer(answer: "asyncio.Future[Any]", reply: Any) -> None:
    if not answer.done():
        answer.set_result(reply)


def _reset(answer: "asyncio.Future[Any]") -> None:
    if not answer.done():
        answer.set_exception(httpx.ReadError("simulated"))
