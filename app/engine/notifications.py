"""Notifications between replicas: which transactions have changed (PostgreSQL's LISTEN and NOTIFY).

A notification is only a hint to look a transaction up again, and nothing depends on its arrival. Without notifications,
and on databases that have none, the transactions that clients wait for are polled.
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
"""Polling interval for waiting clients where there are no notifications, in seconds."""
LISTENING_POLL_S: Final = 2.0
"""Polling interval where there are: one may be lost with a connection."""
ALONE_POLL_S: Final = 5.0
"""Polling interval where no other process uses the database, as a precaution."""
IDS_MAX: Final = 200
"""Maximum number of ids in a notification; PostgreSQL limits its text to 8,000 bytes."""
GATHER_S: Final = 0.05
"""Minimum time between two notifications, in seconds."""
RECONNECT_S: Final = 1.0
LOOK_UP_S: Final = 1.0
"""How often the listening thread checks whether it should stop, in seconds."""


class Notifications:
    """Sends and receives notifications. With `alone`, no other process uses the database and it does nothing.

    `direct_url` leads to the database where the journal's leads to a pooler: a session that listens must stay.
    """

    def __init__(self, journal: Journal, *, alone: bool, direct_url: str | None = None) -> None:
        self._journal = journal
        self._direct_url = direct_url
        self._direct: Journal | None = None
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
        """How often a waiting client's transaction should be looked up, in seconds."""
        if self._alone:
            return ALONE_POLL_S
        return LISTENING_POLL_S if self._listening else POLL_S

    def subscribe(self, heard: Callable[[str], None]) -> None:
        """Call `heard` on the event loop with the id of each transaction that another process has changed."""
        self._heard = heard

    def tell(self, transaction_id: str) -> None:
        """Notify the other processes, shortly, that this transaction has been saved."""
        if self._sending is not None:
            self._changed.append(transaction_id)
            self._gathered.set()

    async def start(self) -> None:
        """Start, if the database supports notifications; otherwise `tell` does nothing."""
        if self._alone:
            return
        if self._direct_url is not None:
            self._direct = Journal(self._direct_url)
        if not await (self._direct or self._journal).read(notifications.is_supported):
            log.info("event=no_notifications This database has none; transactions that clients wait for are polled.")
            return
        self._sending = asyncio.create_task(self._send_until_stopped(), name="notifications")
        loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._listen, args=(loop,), name="holdfast-listen", daemon=True)
        self._thread.start()

    async def stop(self) -> None:
        """Stop sending and listening."""
        self._stopped.set()
        if self._sending is not None:
            self._sending.cancel()
            await asyncio.gather(self._sending, return_exceptions=True)
        if self._thread is not None:
            await asyncio.to_thread(self._thread.join)
        if self._direct is not None:
            await self._direct.close()

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
        """Runs in its own thread, because the driver blocks while it waits."""
        while not self._stopped.is_set():
            try:
                self._listen_on_one_connection(loop)
            except Exception as error:  # the driver raises its own errors here, unwrapped
                log.info("event=not_listening error=%s", type(error).__name__)
            finally:
                self._listening = False
            self._stopped.wait(RECONNECT_S)

    def _listen_on_one_connection(self, loop: asyncio.AbstractEventLoop) -> None:
        engine = (self._direct or self._journal).engine.execution_options(isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            notifications.listen(connection)
            driver: Any = connection.connection.driver_connection
            self._listening = True
            while not self._stopped.is_set():
                for notification in driver.notifies(timeout=LOOK_UP_S):
                    loop.call_soon_threadsafe(self._received, notification.payload)
