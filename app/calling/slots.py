"""Which calls may be made now: a number of slots that all participants share, and a limit for each of them.

A participant may have a share of the slots that are free, so participants that hang leave some for the others. Its
share halves with each call that stays unanswered, and doubles with each that is answered. No I/O, and no clock.
"""

import asyncio
from collections import deque
from contextlib import suppress
from typing import Final

HALVINGS_MAX: Final = 7
"""How often a participant's share halves: to a 128th of the free slots, but never to less than one."""
SCARCE_HALVINGS: Final = 4
"""How often it is halved at least, for everybody, while less than half of the slots are free."""
RESERVE_PART: Final = 8
"""The last eighth of the slots is for participants whose last calls were all answered."""
SILENT_MAX: Final = 4096
"""How many participants without calls in progress are remembered because they don't answer."""


class Group:
    """The calls that share a limit: those to one participant, or to one origin of inline endpoints."""

    __slots__ = ("concurrency_max", "halvings", "in_progress", "name", "waiting")

    def __init__(self, name: str, concurrency_max: int) -> None:
        self.name: Final = name
        self.concurrency_max = concurrency_max
        self.in_progress = 0
        self.halvings = 0
        """The calls that stayed unanswered, less those that were answered since; within 0 and HALVINGS_MAX."""
        self.waiting: deque[asyncio.Future[None]] = deque()


class Slots:
    """Slots for `calls_max` calls. Each `take` that returned True is followed by one `give_back`."""

    def __init__(self, calls_max: int) -> None:
        self._free = calls_max
        self._scarce = calls_max // 2
        self._reserve = calls_max // RESERVE_PART
        self._groups: dict[str, Group] = {}
        self._waiting: dict[Group, None] = {}
        """The groups in which calls wait, the one that was served last at the end."""

    def group(self, name: str, concurrency_max: int) -> Group:
        """The group of this name, which may have `concurrency_max` calls in progress from now on."""
        group = self._groups.get(name)
        if group is None:
            group = self._groups[name] = Group(name, concurrency_max)
        group.concurrency_max = concurrency_max
        return group

    def take(self, group: Group) -> bool:
        """Take a slot if that is possible without waiting."""
        if group.waiting or not self._may_start(group):
            return False
        self._start(group)
        return True

    async def wait(self, group: Group, timeout_s: float) -> bool:
        """Take a slot once it is this call's turn; False if that takes too long."""
        waiter = asyncio.get_running_loop().create_future()
        group.waiting.append(waiter)
        self._waiting.setdefault(group)
        try:
            async with asyncio.timeout(timeout_s):
                await waiter
        except BaseException as error:
            if waiter.done() and not waiter.cancelled():  # it was its turn at the same moment
                self.give_back(group, was_answered=None)
            else:
                with suppress(ValueError):  # it has been skipped already
                    group.waiting.remove(waiter)
                self._settle(group)
            if isinstance(error, TimeoutError):
                return False
            raise
        return True

    def give_back(self, group: Group, *, was_answered: bool | None) -> None:
        """Give a slot back. `was_answered` is None if the call says nothing about the participant."""
        group.in_progress -= 1
        self._free += 1
        if was_answered:
            group.halvings = max(0, group.halvings - 1)
        elif was_answered is not None:
            group.halvings = min(HALVINGS_MAX, group.halvings + 1)
        if self._waiting:
            self._hand_out()
        self._settle(group)

    def _may_start(self, group: Group) -> bool:
        free, halvings = self._free, group.halvings
        if free <= (self._reserve if halvings else 0):
            return False
        if free <= self._scarce and halvings < SCARCE_HALVINGS:
            halvings = SCARCE_HALVINGS
        return group.in_progress < group.concurrency_max and group.in_progress < max(1, free >> halvings)

    def _start(self, group: Group) -> None:
        group.in_progress += 1
        self._free -= 1

    def _hand_out(self) -> None:
        """Start the calls that may start now, in each group in the order in which they came."""
        for group in list(self._waiting):
            while group.waiting and self._may_start(group):
                waiter = group.waiting.popleft()
                if not waiter.done():  # it may have been cancelled just now
                    self._start(group)
                    waiter.set_result(None)
                    del self._waiting[group]
                    self._waiting[group] = None
            self._settle(group)
            if not self._free:
                return

    def _settle(self, group: Group) -> None:
        """Forget what needs no memory any more."""
        if group.waiting:
            return
        self._waiting.pop(group, None)
        is_needed = group.in_progress > 0 or (group.halvings > 0 and len(self._groups) <= SILENT_MAX)
        if not is_needed and self._groups.get(group.name) is group:  # or a call that gave up would remove its successor
            del self._groups[group.name]
