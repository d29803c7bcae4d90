"""Notifications between replicas: which transactions have changed (PostgreSQL's LISTEN and NOTIFY).

A hint and no more: whoever waits for a transaction looks it up again. Nothing depends on its arrival; without it, or
on a database that has no such thing, a waiting client's transaction is looked up at intervals.
"""

import asyncio
import logging
import secrets
import threading
from collections.abc import Callable
from typing import Any, Final

from app.storage import notifications
from app.storage.errors import DatabaseError
from app.storage.group_commit import Journal

log = logging.getLogger(__name__)

POLL_S: Final = 0.25
"""How often a waiting client's transaction is looked up where there are no notifications, in seconds."""
LISTENING_POLL_S: Final = 2.0
"""… and where there are: one may be lost with a connection."""
ALONE_POLL_S: Final = 5.0
"""… and where no other process works on the database: only to be sure."""
IDS_MAX: Final = 200
"""Transactions in one notification, whose text PostgreSQL limits to 8,000 bytes."""
GATHER_S: Final = 0.05
"""The shortest time between two notifications, in seconds."""
RECONNECT_S: Final = 1.0
LOOK_UP_S: Final = 1.0
"""How long the listening thread waits before it sees whether it is to stop, in seconds."""


class Notifications:
    """Sends and receives notifications; with `alone` nobody else works on the database, and there is nothing to do."""

    def __init__(self, journal: Journal, *, alone: bool) -> None:
        self._journal = journal
        self._alone = alone
        self._sender = secrets.token_hex(4)
        self._heard: Callable[[str], None] = lambda transaction_id: None
        self._changed: list[str] = []
        self._gathered = asyncio.Event()
        self._listening = False
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None
        self._sending: asyncio.Task[None] | None = None

    @property
    def poll_s(self) -> float:
        """How long whoever waits may rely on being told, in seconds."""
        if self._alone:
            return ALONE_POLL_S
        return LISTENING_POLL_S if self._listening else POLL_S

    def subscribe(self, heard: Callable[[str], None]) -> None:
        """Have `heard` called on the event loop, with the id of each transaction that another process has changed."""
        self._heard = heard

    def tell(self, transaction_id: str) -> None:
        """Have the others told, soon, that this transaction has been saved."""
        if self._sending is not None:
            self._changed.append(transaction_id)
            self._gathered.set()

    async def start(self) -> None:
        """Begin, where the database can; elsewhere `tell` does nothing."""
        if self._alone:
            return
        if not await self._journal.read(notifications.is_supported):
            log.info("event=no_notifications Clients that wait are served by polling.")
            return
        self._sending = asyncio.create_task(self._send_until_stopped(), name="notifications")
        loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._listen, args=(loop,), name="holdfast-listen", daemon=True)
        self._thread.start()

    async def stop(self) -> None:
        """Tell and listen no more."""
        self._stopped.set()
        if self._sending is not None:
            self._sending.cancel()
            await asyncio.gather(self._sending, return_exceptions=True)
        if self._thread is not None:
            await asyncio.to_thread(self._thread.join)

    async def _send_until_stopped(self) -> None:
        while True:
            await self._gathered.wait()
            self._gathered.clear()
            ids, self._changed = self._changed, []
            for start in range(0, len(ids), IDS_MAX):
                text = f"{self._sender}:{','.join(ids[start : start + IDS_MAX])}"
                try:
                    await self._journal.write_apart(notifications.notify, text)
                except DatabaseError as error:
                    log.info("event=notification_not_sent error=%s", error.kind)
            await asyncio.sleep(GATHER_S)

    def _received(self, text: str) -> None:
        sender, _, ids = text.partition(":")
        if sender != self._sender:
            for transaction_id in ids.split(","):
                self._heard(transaction_id)

    def _listen(self, loop: asyncio.AbstractEventLoop) -> None:
        """In a thread of its own, because the driver blocks while it waits."""
        while not self._stopped.is_set():
            try:
                self._listen_on_one_connection(loop)
            except Exception as error:  # the driver raises its own errors here, unwrapped
                log.info("event=not_listening error=%s", type(error).__name__)
            finally:
                self._listening = False
            self._stopped.wait(RECONNECT_S)

    def _listen_on_one_connection(self, loop: asyncio.AbstractEventLoop) -> None:
        engine = self._journal.engine.execution_options(isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            notifications.listen(connection)
            driver: Any = connection.connection.driver_connection
            self._listening = True
            while not self._stopped.is_set():
                for notification in driver.notifies(timeout=LOOK_UP_S):
                    loop.call_soon_threadsafe(self._received, notification.payload)
