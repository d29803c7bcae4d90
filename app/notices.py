"""Tells other replicas which transactions have changed, and is told by them (PostgreSQL's LISTEN and NOTIFY).

A hint and no more: whoever waits for a transaction looks it up again. Nothing depends on its arrival; without it, or
on a database that has no such thing, a waiting client's transaction is looked up in intervals.
"""

import asyncio
import logging
import secrets
import threading
from collections.abc import Callable
from typing import Any, Final

from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from app import store
from app.journal import Journal, JournalClosed

log = logging.getLogger(__name__)

POLL_S: Final = 0.25
"""A waiting client's transaction is looked up so often, in seconds, where no notices come."""
LISTENING_POLL_S: Final = 2.0
"""… and so often where they do: one may be lost with a connection."""
ALONE_POLL_S: Final = 5.0
"""… and so often where no other process works on the database: only to be sure."""
IDS_MAX: Final = 200
"""Transactions in one notice, whose text PostgreSQL limits to 8,000 bytes."""
GATHER_S: Final = 0.05
"""Notices go out at most so often."""
RECONNECT_S: Final = 1.0
LOOK_UP_S: Final = 1.0
"""How long the listening thread waits before it sees whether it is to stop."""


class Notices:
    """Sends and receives notices; `alone` says that nobody else works on the database, and there is nothing to do."""

    def __init__(self, journal: Journal, *, alone: bool) -> None:
        self._journal = journal
        self._alone = alone
        self._sender = secrets.token_hex(4)
        self._changed: list[str] = []
        self._gathered = asyncio.Event()
        self._listening = False
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None
        self._teller: asyncio.Task[None] | None = None

    @property
    def poll_s(self) -> float:
        """How long whoever waits may rely on being told, in seconds."""
        if self._alone:
            return ALONE_POLL_S
        return LISTENING_POLL_S if self._listening else POLL_S

    def tell(self, transaction_id: str) -> None:
        """Have the others told, soon, that this transaction has been saved."""
        if self._teller is not None:
            self._changed.append(transaction_id)
            self._gathered.set()

    async def start(self, heard: Callable[[str], None]) -> None:
        """Begin, where the database can; elsewhere `tell` does nothing.

        `heard` is called on the event loop, with the id of what somebody else has changed.
        """
        if self._alone:
            return
        try:
            await self._journal.read(store.try_to_listen)
        except DBAPIError as error:
            log.info("event=no_notices error=%s", type(error.orig).__name__)
            return

        loop = asyncio.get_running_loop()

        def read(notice: str) -> None:
            sender, _, ids = notice.partition(":")
            if sender != self._sender:
                for transaction_id in ids.split(","):
                    heard(transaction_id)

        def arrived(notice: str) -> None:
            loop.call_soon_threadsafe(read, notice)

        self._teller = asyncio.create_task(self._tell_until_stopped(), name="notices")
        self._thread = threading.Thread(target=self._listen, args=(arrived,), name="holdfast-listen", daemon=True)
        self._thread.start()

    async def stop(self) -> None:
        """Tell and listen no more."""
        self._stopped.set()
        if self._teller is not None:
            self._teller.cancel()
            await asyncio.gather(self._teller, return_exceptions=True)
        if self._thread is not None:
            await asyncio.to_thread(self._thread.join)

    async def _tell_until_stopped(self) -> None:
        while True:
            await self._gathered.wait()
            self._gathered.clear()
            ids, self._changed = self._changed, []
            for start in range(0, len(ids), IDS_MAX):
                notice = f"{self._sender}:{','.join(ids[start : start + IDS_MAX])}"
                try:
                    await self._journal.write_apart(store.announce, notice)
                except (SQLAlchemyError, JournalClosed) as error:
                    log.info("event=notice_not_sent error=%s", type(error).__name__)
            await asyncio.sleep(GATHER_S)

    def _listen(self, arrived: Callable[[str], None]) -> None:
        """In a thread of its own, because the driver blocks while it waits."""
        while not self._stopped.is_set():
            try:
                self._listen_on_one_connection(arrived)
            except Exception as error:  # the driver raises its own errors here, unwrapped
                log.info("event=not_listening error=%s", type(error).__name__)
            finally:
                self._listening = False
            self._stopped.wait(RECONNECT_S)

    def _listen_on_one_connection(self, arrived: Callable[[str], None]) -> None:
        engine = self._journal.engine.execution_options(isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            store.listen(connection)
            driver: Any = connection.connection.driver_connection
            self._listening = True
            while not self._stopped.is_set():
                for notice in driver.notifies(timeout=LOOK_UP_S):
                    arrived(notice.payload)
