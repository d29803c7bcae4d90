"""An event loop without sockets, threads or clocks: virtual time, and processes that can die and freeze.

Every callback belongs to a process, which it inherits through its context. Within a process callbacks run in the
order in which they became ready, as asyncio promises; which process runs next is drawn. A process that is dead is
never scheduled again, and nothing of it is cleaned up: that is what a crash is. Time stands still while anything is
ready, and then jumps to the next timer.
"""

import asyncio
import contextvars
import heapq
import random
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, Final

FROZEN_S: Final = (0.2, 3.5)
"""How long a frozen process is not scheduled: a lease is shorter."""
STEPS_MAX: Final = 60_000
"""Callbacks in one seed, at the most: several times what the busiest take."""


class Runaway(Exception):
    """Something is busy without end, or nothing is left to wait for."""


class Process:
    """What dies, freezes and is scheduled as one. `clock_offset_s` and `clock_rate` are its machine's."""

    def __init__(self, loop: "Scheduler", name: str) -> None:
        self.loop = loop
        self.name = name
        self.dead = False
        self.frozen = False
        self.ready: deque[Callback] = deque()
        self.context = contextvars.copy_context()
        self.context.run(_PROCESS.set, self)
        self.clock_offset_s = 0.0
        self.clock_rate = 1.0
        self._stood_still_s = 0.0
        self._stands_still_since: float | None = None
        self.changed: Callable[[str, Process], None] = lambda what, process: None

    def clock(self) -> float:
        """Seconds since the epoch, by its machine."""
        return EPOCH + self.clock_offset_s + self.elapsed()

    def elapsed(self) -> float:
        """Its machine's monotonic clock, which nobody sets. It stands still while its machine does."""
        return self.loop.now * self.clock_rate - self._stood_still_s

    def spawn(self, coroutine: Coroutine[Any, Any, Any]) -> "asyncio.Task[Any]":
        """Run a coroutine as a part of this process."""
        task = self.loop.create_task(coroutine, context=self.context)
        self.loop.kept.append(task)
        task.add_done_callback(self.loop.note_end, context=self.loop.world.context)
        return task

    def kill(self) -> None:
        """Never schedule it again; what it still tries comes to nothing."""
        if self.dead:
            return
        self.dead = True
        self.loop.removed(self)
        self.loop.graveyard.extend(self.ready)
        self.ready.clear()
        self.changed("dies", self)

    def freeze_for(self, seconds: float, *, with_its_clocks: bool = False) -> None:
        """Not scheduled for so long, or until it is thawed; what becomes ready waits. Its clocks may stop, too."""
        if self.is_up:
            self.frozen = True
            self._stands_still_since = self.loop.now if with_its_clocks else None
            self.changed("freezes", self)
            self.loop.removed(self)
            self.loop.call_later(seconds, self.thaw, context=self.loop.world.context)

    def thaw(self) -> None:
        if self.frozen and not self.dead:
            self.frozen = False
            if self._stands_still_since is not None:
                self._stood_still_s += (self.loop.now - self._stands_still_since) * self.clock_rate
            self.changed("thaws", self)
            if self.ready:
                self.loop.runnable.append(self)

    @property
    def is_up(self) -> bool:
        return not self.dead and not self.frozen


_PROCESS: contextvars.ContextVar[Process] = contextvars.ContextVar("process")
EPOCH: Final = 1_800_000_000.0


def current() -> Process:
    """The process that is running."""
    return _PROCESS.get()


class Callback:
    """What asyncio's Handle and TimerHandle are, in a fifth of the time."""

    __slots__ = ("_when", "args", "callback", "context", "is_cancelled", "process")

    def __init__(
        self, callback: Any, args: tuple[Any, ...], context: contextvars.Context | None, when: float, world: Process
    ) -> None:
        self.callback = callback
        self.args = args
        self.context = contextvars.copy_context() if context is None else context
        self.process = self.context.get(_PROCESS, world)
        self.is_cancelled = False
        self._when = when

    def cancel(self) -> None:
        self.is_cancelled = True
        self.callback = self.args = None  # type: ignore[assignment]

    def cancelled(self) -> bool:
        return self.is_cancelled

    def when(self) -> float:
        return self._when


class Scheduler(asyncio.BaseEventLoop):
    """`draw` decides between processes that are ready; nothing else is random here."""

    def __init__(self, draw: random.Random) -> None:
        super().__init__()
        self.now = 0.0
        self.steps = 0
        self.draw = draw
        self.runnable: list[Process] = []
        self.kept: list[Any] = []
        self.graveyard: list[Any] = []
        self.failures: list[str] = []
        self._timers: list[tuple[float, int, Callback]] = []
        self._timer_count = 0
        self.world = Process(self, "world")
        self.set_exception_handler(self._note_failure)

    def time(self) -> float:
        return self.now

    def call_soon(  # type: ignore[override]
        self, callback: Any, *args: Any, context: contextvars.Context | None = None
    ) -> Callback:
        ready = Callback(callback, args, context, self.now, self.world)
        self._put(ready)
        return ready

    call_soon_threadsafe = call_soon  # type: ignore[assignment]

    def call_at(  # type: ignore[override]
        self, when: float, callback: Any, *args: Any, context: contextvars.Context | None = None
    ) -> Callback:
        timer = Callback(callback, args, context, when, self.world)
        self._timer_count += 1
        heapq.heappush(self._timers, (when, self._timer_count, timer))
        return timer

    def call_later(  # type: ignore[override]
        self, delay: float, callback: Any, *args: Any, context: contextvars.Context | None = None
    ) -> Callback:
        return self.call_at(self.now + delay, callback, *args, context=context)

    def removed(self, process: Process) -> None:
        if process in self.runnable:
            self.runnable.remove(process)

    def run_to_end(self, main: Coroutine[Any, Any, Any]) -> Any:
        """Run `main` in the world's process, and everything else meanwhile."""
        asyncio._set_running_loop(self)
        try:
            task = self.world.spawn(main)
            self._run_until(task)
            return task.result()
        finally:
            asyncio._set_running_loop(None)

    def bury(self) -> None:
        """Let go of all that never ended, without running any of it."""
        self.world.dead = True
        for task in asyncio.all_tasks(self):
            task._log_destroy_pending = False  # type: ignore[attr-defined]
        self._closed = True

    def _run_until(self, task: "asyncio.Task[Any]") -> None:
        runnable, draw = self.runnable, self.draw.random
        while not task.done():
            if not runnable:
                self._jump()
                continue
            process = runnable[0] if len(runnable) == 1 else runnable[int(draw() * len(runnable))]
            ready = process.ready.popleft()
            if not process.ready:
                runnable.remove(process)
            if not ready.is_cancelled:
                self._run(ready)
            self.steps += 1
            if self.steps > STEPS_MAX:
                raise Runaway(f"{process.name} is busy for ever at {self.now:.3f} s: {ready.callback!r}")

    def _jump(self) -> None:
        """To the next timer, and with it to all that are due at the same moment."""
        timers = self._timers
        while timers and ((first := timers[0][2]).is_cancelled or first.process.dead):
            self.graveyard.append(heapq.heappop(timers)[2])
        if not timers:
            raise Runaway("deadlock: nothing is under way, and nothing is due")
        self.now = now = max(self.now, timers[0][0])
        while timers and timers[0][0] <= now:
            timer = heapq.heappop(timers)[2]
            if not timer.is_cancelled:
                self._put(timer)

    def _run(self, ready: Callback) -> None:
        try:
            ready.context.run(ready.callback, *ready.args)
        except Exception as error:
            self.call_exception_handler({"message": f"in {ready.callback!r}", "exception": error})

    def _put(self, ready: Callback) -> None:
        process = ready.process
        if process.dead:
            self.graveyard.append(ready)
            return
        process.ready.append(ready)
        if len(process.ready) == 1 and not process.frozen:
            self.runnable.append(process)

    def note_end(self, task: "asyncio.Task[Any]") -> None:
        """No task of ours ends with an exception that nobody looks at."""
        if not task.cancelled() and task.exception() is not None:
            self.failures.append(f"{task.get_coro()!r} raised {task.exception()!r}")

    def _note_failure(self, _loop: asyncio.AbstractEventLoop, what: dict[str, Any]) -> None:
        if not self._closed:
            self.failures.append(f"{what.get('message')}: {what.get('exception')!r}")


async def pass_time(seconds: float) -> None:
    """Let so much virtual time pass."""
    loop = asyncio.get_running_loop()
    passed = loop.create_future()
    loop.call_later(seconds, settle, passed)
    await passed


def freeze(*, with_its_clocks: bool = False) -> float:
    """Freeze the process that is running as soon as it waits for something; for how many seconds."""
    process = current()
    seconds = process.loop.draw.uniform(*FROZEN_S)
    process.freeze_for(seconds, with_its_clocks=with_its_clocks)
    return seconds


async def never() -> Any:
    """Wait for what does not come: how a process that died ends whatever it was doing."""
    future = asyncio.get_running_loop().create_future()
    loop = current().loop
    loop.kept.append(future)
    await future


def settle(future: "asyncio.Future[None]") -> None:
    if not future.done():
        future.set_result(None)
