"""What replicas and participants have in common: one process after the other, each of which can die and freeze."""

from abc import ABC, abstractmethod
from typing import Any

from tests.simulation.network import Serve
from tests.simulation.scheduler import Process


class Restarting(ABC):
    """`life` is the process that runs now, or has died; each start is another one. Its clock survives restarts."""

    def __init__(self, world: Any, name: str) -> None:
        self.world = world
        self.name = name
        self.lives = 0
        self.life: Process | None = None
        self.offset_s = 0.0
        self.rate = 1.0
        world.network.places[name] = self._place

    def boot(self) -> None:
        """Start a new life."""
        world = self.world
        self.lives += 1
        life = self.life = Process(world.loop, f"{self.name}.{self.lives}")
        life.clock_offset_s, life.clock_rate = self.offset_s, self.rate
        life.changed = self._changed
        world.tell("boots", life.name, "", "")
        life.context.run(self._assemble, life)

    @abstractmethod
    def _assemble(self, life: Process) -> None:
        """Make what runs in this life, within its process."""

    @abstractmethod
    async def _serve(self, request: Any) -> Any:
        """Answer what arrives."""

    @property
    def serves(self) -> bool:
        """Whether a process lives that answers."""
        return self.life is not None and not self.life.dead and self._listens

    @property
    def _listens(self) -> bool:
        return True

    def _changed(self, what: str, life: Process) -> None:
        self.world.tell(what, life.name, "", "")

    def _place(self) -> tuple[Process, Serve] | None:
        """Which process answers now, and how; None when nobody listens."""
        return (self.life, self._serve) if self.life is not None and self.serves else None
