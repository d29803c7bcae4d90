"""The loop that tests stand on lets time pass, by however little."""

import asyncio

from app.engine.waiters import wait_for_event
from tests.harness.virtual_time import in_virtual_time, now, pass_time

LATE = 1_000_030.01
"""A moment that the loop's own time is rounded away from: at 30.01 the clock is still one step before it."""
ALMOST = 30.00999999990214


@in_virtual_time
async def test_several_that_wait_for_the_clocks_next_step_all_come_there() -> None:
    async def wait(turns: int) -> float:
        await pass_time(ALMOST)
        for _ in range(turns):
            await asyncio.sleep(0)  # out of step with the others: one of them is always ready
        assert now() < LATE
        while now() < LATE:
            await wait_for_event(asyncio.Event(), LATE - now())
        return now()

    assert set(await asyncio.gather(*map(wait, range(4)))) == {LATE}
