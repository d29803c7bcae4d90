"""An event loop whose clock jumps to the next timer whenever nothing else is left to do.

Time stands still while a thread works for the loop (the database), so a test sees the same order of things however
slow the machine is, and hours pass in milliseconds. A loop that waits for nothing at all is a deadlock: it raises.
"""

import asyncio
import functools
import selectors
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import Executor
from typing import Any, Final, ParamSpec, TypeVar, TypeVarTuple

EPOCH: Final = 1_000_000.0
"""What the coordinators' clock says when a test begins."""
THREAD_LIMIT_S: Final = 20.0
"""A thread that takes longer, in real seconds, has died or is stuck."""
TURNS_MAX: Final = 100_000
"""So often may the loop turn at one moment of virtual time."""
RESOLUTION_S: Final = 1e-11
"""A timer comes so much too early at the most. That is less than the smallest step of a coordinator's clock (1e-10 at
EPOCH), or a timer for that step would come while the clock still says that it is too early, again and again."""
TEST_LIMIT_S: Final = 7200.0
"""A test that takes longer, in virtual seconds, waits for what will never come."""

_Parameters = ParamSpec("_Parameters")
_Result = TypeVar("_Result")
_Arguments = TypeVarTuple("_Arguments")


class _JumpingSelector(selectors.DefaultSelector):
    loop: "VirtualLoop"

    def select(self, timeout: float | None = None) -> Any:
        if timeout is not None and timeout <= 0:
            self.loop.turns += 1
            assert self.loop.turns < TURNS_MAX, "something is busy for ever without time passing"
            return super().select(0)
        if self.loop.in_threads:
            events = super().select(THREAD_LIMIT_S)
            assert events, f"a thread has been silent for {THREAD_LIMIT_S} s"
            return events
        events = super().select(0)
        if events:
            return events
        if timeout is None:
            raise AssertionError("deadlock: nothing is under way, and nothing is due")
        self.loop.jump(timeout)
        return []


class VirtualLoop(asyncio.SelectorEventLoop):
    """`in_threads` counts the pieces of work that threads do for this loop."""

    newest: "VirtualLoop | None" = None

    def __init__(self) -> None:
        VirtualLoop.newest = self
        self.in_threads = 0
        self.turns = 0
        self.before_jump: list[Callable[[], None]] = []
        """Called whenever everything has been done that could be done at this moment."""
        self._now = 0.0
        selector = _JumpingSelector()
        selector.loop = self
        super().__init__(selector)
        self._clock_resolution = RESOLUTION_S

    def time(self) -> float:
        return self._now

    def jump(self, seconds: float) -> None:
        for look in self.before_jump:
            look()
        self._now += seconds
        self.turns = 0

    def stall(self, seconds: float) -> None:
        """Time passes while a thread works for the loop, or a callback does; called by either."""
        self._now += seconds

    def run_in_executor(
        self, executor: Executor | None, func: Callable[[*_Arguments], _Result], *args: *_Arguments
    ) -> asyncio.Future[_Result]:
        self.in_threads += 1
        future = super().run_in_executor(executor, func, *args)
        future.add_done_callback(self._left_thread)
        return future

    async def shutdown_default_executor(self, *args: Any) -> None:
        self.in_threads += 1
        await super().shutdown_default_executor(*args)
        self.in_threads -= 1

    def _left_thread(self, _future: object) -> None:
        self.in_threads -= 1


async def in_thread(awaitable: Awaitable[_Result]) -> _Result:
    """Await what a thread will settle, with time standing still."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualLoop)
    loop.in_threads += 1
    try:
        return await awaitable
    finally:
        loop.in_threads -= 1


def now() -> float:
    """The coordinators' clock, in seconds since the epoch; in a thread, that of the loop that it works for."""
    loop = asyncio._get_running_loop() or VirtualLoop.newest
    assert loop is not None
    return EPOCH + loop.time()


async def pass_time(seconds: float) -> None:
    """Let so much time pass; whatever is due meanwhile happens."""
    loop = asyncio.get_running_loop()
    passed = loop.create_future()
    loop.call_later(seconds, passed.set_result, None)
    await passed


async def until(holds: Callable[[], bool], limit_s: float = 60.0) -> None:
    """Let time pass until something holds; fails when it does not within `limit_s`."""
    last = now() + limit_s
    while not holds():
        assert now() < last, f"not within {limit_s} s"
        await pass_time(0.01)


def in_virtual_time(
    test: Callable[_Parameters, Coroutine[Any, Any, None]],
) -> Callable[_Parameters, None]:
    """Run a test of this kind in a loop of its own whose time is virtual, of which it may take TEST_LIMIT_S."""

    async def limited(*args: _Parameters.args, **kwargs: _Parameters.kwargs) -> None:
        async with asyncio.timeout(TEST_LIMIT_S):
            await test(*args, **kwargs)

    @functools.wraps(test)
    def run(*args: _Parameters.args, **kwargs: _Parameters.kwargs) -> None:
        with asyncio.Runner(loop_factory=VirtualLoop) as runner:
            runner.run(limited(*args, **kwargs))

    return run
