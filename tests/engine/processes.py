"""An event loop of virtual time with processes in it that die at the nth point: nothing of them runs ever again.

Every callback belongs to the process that made it, by its context, or to the world around all processes. A callback of
a process runs from one await to the next, so a process can be killed at each of its awaits; no `finally` and no
`except` of a dead one runs. Nothing here knows what a coordinator is.
"""

import asyncio
import contextvars
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final, NamedTuple, TypeVarTuple

from tests.harness.virtual_time import VirtualLoop

_Arguments = TypeVarTuple("_Arguments")

RUN_LIMIT_S: Final = 600.0
"""A run that takes longer, in virtual seconds, has left something stranded."""


class Fault(StrEnum):
    """What happens at a point."""

    KILLED = "killed"  # before what it was about to do next; after a commit, that is before it hears of it
    REPLY_LOST = "reply lost"  # the commit is durable, and the process, which lives on, is told that it failed


Point = tuple[Fault, int]
"""A fault, and at which await (or commit) since the fault before it: 1, 2, 3, …"""


class Moment(NamedTuple):
    """What a process that dies now leaves behind: equal moments of one run leave the same.

    Between them nothing was committed or sent, nothing arrived anywhere, and no time passed.
    """

    left: int  # how often something has left a process: commits and calls
    happened: int  # how often anything has happened in the world: those, arrivals, and answers to clients
    at: float


@dataclass(slots=True)
class Plan:
    """The faults of one run, in order; and the awaits, each as its moment, and the commits since the last of them."""

    faults: Sequence[Point]
    moment: Callable[[], Moment]
    moments: list[Moment] = field(default_factory=list)
    commits: list[str] = field(default_factory=list)
    happened: int = 0

    def is_killed_here(self) -> bool:
        self.moments.append(self.moment())
        return self._happens(Fault.KILLED, len(self.moments))

    def loses_reply_of(self, commit: str) -> bool:
        self.commits.append(commit)
        return self._happens(Fault.REPLY_LOST, len(self.commits))

    def _happens(self, fault: Fault, count: int) -> bool:
        if self.all_happened or self.faults[self.happened] != (fault, count):
            return False
        self.happened += 1
        self.moments.clear()
        self.commits.clear()
        return True

    @property
    def all_happened(self) -> bool:
        return self.happened == len(self.faults)


class Process:
    """What dies as one. `died` is done once it has."""

    def __init__(self, loop: "ProcessLoop", plan: Plan) -> None:
        self._loop = loop
        self._plan = plan
        self.died: asyncio.Future[None] = loop.create_future()
        self._context = contextvars.copy_context()
        self._context.run(_PROCESS.set, self)

    @property
    def dead(self) -> bool:
        return self.died.done()

    def run(self, function: Callable[[], Any]) -> Any:
        """Call `function` as a part of this process."""
        return self._context.run(function)

    def spawn(self, coroutine: Coroutine[Any, Any, Any]) -> "asyncio.Task[Any]":
        """Run a coroutine as a part of this process."""
        return self._loop.create_task(coroutine, context=self._context)

    def resume(self, callback: Callable[..., Any], args: tuple[Any, ...]) -> None:
        """Run one of its callbacks, unless it is dead or dies here."""
        if not self.dead and self._plan.is_killed_here():
            self.died.set_result(None)
        if self.dead:
            self._loop.graveyard.append((callback, args))
        else:
            callback(*args)


_PROCESS: Final[contextvars.ContextVar[Process | None]] = contextvars.ContextVar("process", default=None)


class ProcessLoop(VirtualLoop):
    """Knows of each callback whose it is."""

    def __init__(self) -> None:
        self.graveyard: list[Any] = []
        """Keeps what was under way in dead processes: collecting it would run its `finally`."""
        self._buried = False
        super().__init__()

    def call_soon(
        self,
        callback: Callable[[*_Arguments], object],
        *args: *_Arguments,
        context: contextvars.Context | None = None,
    ) -> asyncio.Handle:
        if self._buried:  # what is collected at the very end wakes nobody
            return asyncio.Handle(callback, args, self, context)
        return super().call_soon(self._belonging(callback, context), *args, context=context)

    def call_at(
        self,
        when: float,
        callback: Callable[[*_Arguments], object],
        *args: *_Arguments,
        context: contextvars.Context | None = None,
    ) -> asyncio.TimerHandle:
        return super().call_at(when, self._belonging(callback, context), *args, context=context)

    def _belonging(
        self, callback: Callable[[*_Arguments], object], context: contextvars.Context | None
    ) -> Callable[[*_Arguments], None]:
        process = _PROCESS.get() if context is None else context.get(_PROCESS)

        def run(*args: *_Arguments) -> None:
            if process is None:
                callback(*args)
            else:
                process.resume(callback, args)

        return run

    def run_world(self, main: Coroutine[Any, Any, Any]) -> Any:
        """Run `main`, which belongs to no process, to its end, and forget all that is still under way."""

        async def limited() -> Any:
            async with asyncio.timeout(RUN_LIMIT_S):
                return await main

        try:
            return self.run_until_complete(limited())
        finally:
            self._bury()

    def _bury(self) -> None:
        """Now that all has been looked at: let go of what is still under way, in dead processes and elsewhere."""
        self._buried = True
        for task in asyncio.all_tasks(self):
            task._log_destroy_pending = False  # type: ignore[attr-defined]
            with suppress(RuntimeError):  # its `finally` may miss what has gone before it
                task.get_coro().close()
        self.graveyard.clear()
        self.close()
