"""Steps that stories have in common: wait for something, look at what hangs, tell what is on record."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeVar

from examples.demo.story import Story, StoryFailed
from examples.demo.world import World
from examples.processes import until

T = TypeVar("T")

WITHIN_S: Final = 30.0
"""How long a step may take before the story has failed; none takes nearly as long."""


async def tell(world: World, story: Story, transaction: dict[str, Any], label: str = "") -> list[dict[str, Any]]:
    """Tell what the coordinator has on record of a transaction; its calls."""
    calls: list[dict[str, Any]] = (await world.ask("GET", f"/v1/transactions/{transaction['id']}/calls"))["items"]
    story.tell(transaction, calls, label)
    return calls


async def found(what: str, look: Callable[[], Awaitable[T | None]]) -> T:
    try:
        return await until(what, look, within_s=WITHIN_S)
    except TimeoutError as error:
        raise StoryFailed(str(error)) from None


async def reached(event: asyncio.Event, what: str) -> None:
    try:
        async with asyncio.timeout(WITHIN_S):
            await event.wait()
    except TimeoutError:
        raise StoryFailed(f"not within {WITHIN_S:g} s: {what}") from None


async def hung(world: World, transaction_id: str) -> dict[str, Any] | None:
    items = (await world.ask("GET", "/v1/admin/hung"))["items"]
    return next((item for item in items if item["id"] == transaction_id), None)
