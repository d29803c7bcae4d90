"""Looks into the inbox for commands that other processes ask of the transactions in progress here.

Where replicas notify each other this is a precaution, because a notification may be lost. Carries out nothing itself.
"""

import logging
from collections.abc import Callable
from typing import Final

from app.background import RepeatingTask
from app.engine.run import PendingCommand
from app.engine.runs import Runs
from app.storage import commands
from app.storage.errors import DatabaseError
from app.storage.group_commit import Journal

log = logging.getLogger(__name__)

COMMANDS_MAX: Final = 500
"""Maximum number of commands in one look."""
FORGOTTEN_S: Final = 60.0
"""After this long nobody waits for the outcome of a command any more, in seconds."""
FAILURE_PAUSE_S: Final = 1.0
STOP_MAX_S: Final = 2.0


class Inbox:
    """Gives commands to the runs of this process, until it is stopped.

    `poll_s` says how often to look, in seconds, and `clock` gives seconds since the epoch.
    """

    def __init__(
        self, *, journal: Journal, runs: Runs, poll_s: Callable[[], float], clock: Callable[[], float]
    ) -> None:
        self._journal = journal
        self._runs = runs
        self._poll_s = poll_s
        self._clock = clock
        self.task: Final = RepeatingTask("inbox", self._round, failure_pause_s=FAILURE_PAUSE_S, stop_max_s=STOP_MAX_S)

    async def start(self) -> None:
        await self.task.start()

    async def stop(self) -> None:
        """Look no more."""
        await self.task.stop()

    async def _round(self) -> float:
        try:
            await self.run_once()
        except DatabaseError as error:
            log.warning("event=inbox_failed error=%s", error.kind)
            return FAILURE_PAUSE_S
        return self._poll_s()

    async def run_once(self) -> None:
        """Give the commands that wait to the runs of their transactions; forget those that wait in vain."""
        waiting = await self._journal.read(commands.list_waiting, COMMANDS_MAX)
        for asked in waiting:
            run = self._runs.active(asked.transaction_id)
            if run is not None:
                run.ask(PendingCommand(command=asked.command, id=asked.id))
        forgotten = self._clock() - FORGOTTEN_S
        if any(asked.at < forgotten for asked in waiting):
            await self._journal.write(commands.remove_forgotten, forgotten)
