"""What routes need from the application, as FastAPI dependencies. main.py creates all of it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request

from app.api.access import Gate
from app.api.readiness import Readiness
from app.api.upgrade import Upgrade
from app.auth.keys import Keys
from app.auth.later_writes import LaterWrites
from app.calling.allowlist import AllowedEndpoints
from app.calling.caller import Caller
from app.calling.registry import Registry
from app.engine.coordinator import Coordinator
from app.engine.memory_budget import MemoryBudget
from app.metrics import Metrics
from app.settings import Settings
from app.storage.group_commit import Journal


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """The parts of the running application that routes talk to."""

    coordinator_id: str
    settings: Settings
    journal: Journal
    registry: Registry
    caller: Caller
    coordinator: Coordinator
    gate: Gate
    keys: Keys
    later_writes: LaterWrites
    readiness: Readiness
    upgrade: Upgrade
    metrics: Metrics
    memory: MemoryBudget
    allowed: AllowedEndpoints
    clock: Callable[[], float]


async def _parts(request: Request) -> Parts:
    # async, because FastAPI would run a plain function in a thread
    parts: Parts = request.app.state.parts
    return parts


PartsOf = Annotated[Parts, Depends(_parts)]
