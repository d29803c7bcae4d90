"""The addresses of a participant's host: look-ups in threads of their own, and what is remembered of their answers.

A look-up can hang for minutes in the C library, where nothing can stop it. Event loops run them in a few threads that
everything shares, so two hanging names would stop all calls. Here each name has at most one look-up in progress, in a
daemon thread, for which neither other names nor the end of the process wait. Connects to nothing.
"""

import asyncio
import socket
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from ipaddress import ip_address
from typing import Final

AGE_MAX_S: Final = 5.0
"""How long the addresses of a name are used without another look-up."""
FAILURE_AGE_MAX_S: Final = 1.0
"""How long a name that wasn't found isn't looked up again, however many calls need it."""
PATIENCE_S: Final = 1.0
"""A look-up that takes longer counts as hanging: the last known addresses are used meanwhile."""
STALE_MAX_S: Final = 300.0
"""How old addresses may become that are used because the name server doesn't answer."""
NAMES_MAX: Final = 4096
"""Maximum number of names that are remembered or being looked up."""
THREADS_MAX: Final = 128
"""Maximum number of look-ups in progress."""
UNKNOWN_THREADS_MAX: Final = 96
"""How many of them names without known addresses may take. Inline endpoints can bring any number of such names."""

Address = tuple[int, int, int, str, tuple[str, int] | tuple[str, int, int, int]]
"""Family, type, protocol, canonical name and socket address, in getaddrinfo's form."""

_DOESNT_EXIST: Final = frozenset(
    getattr(socket, name) for name in ("EAI_NONAME", "EAI_NODATA") if hasattr(socket, name)
)


def _start_daemon(work: Callable[[], None]) -> None:
    threading.Thread(target=work, name="holdfast-look-up", daemon=True).start()


@dataclass(slots=True)
class _Name:
    """What is known of a host name. Times are the event loop's."""

    host: str
    addresses: tuple[Address, ...] = ()
    found_at: float = 0.0
    """When `addresses` were found."""
    failure: OSError | None = None
    """How the last look-up failed; None if it succeeded."""
    failed_at: float = 0.0
    ended: asyncio.Future[None] | None = None
    """Done when the look-up that is queued or in progress ends. Never has an exception, which nobody might retrieve."""
    asked_at: float = 0.0
    """Since when it has been queued or in progress."""
    waiting: int = 0
    """How many calls wait for it."""

    def is_fresh(self, now: float) -> bool:
        if self.failure is not None:
            return now - self.failed_at < FAILURE_AGE_MAX_S
        return bool(self.addresses) and now - self.found_at < AGE_MAX_S

    def is_usable(self, now: float) -> bool:
        return bool(self.addresses) and now - self.found_at < STALE_MAX_S


class Resolver:
    """Finds addresses with getaddrinfo. Belongs to the event loop that first uses it.

    `start_thread` runs its argument in a thread for whose end the process doesn't wait.
    """

    def __init__(self, *, start_thread: Callable[[Callable[[], None]], None] = _start_daemon) -> None:
        self._start_thread = start_thread
        self._names: dict[str, _Name] = {}
        self._queue: deque[_Name] = deque()
        self._in_progress = 0

    async def addresses(self, host: str, port: int) -> list[Address]:
        """Where to connect, best first. Raises OSError if the name isn't found; takes as long as the look-up hangs."""
        literal = _literal(host)
        if literal is not None:
            return [_with_port(literal, port)]
        loop = asyncio.get_running_loop()
        name = self._name(host)
        if not name.is_fresh(loop.time()):
            await self._looked_up(name)
        if name.is_usable(loop.time()):
            return [_with_port(address, port) for address in name.addresses]
        assert name.failure is not None, "a look-up finds addresses or fails"
        raise type(name.failure)(*name.failure.args)

    def _name(self, host: str) -> _Name:
        name = self._names.pop(host, None)
        if name is None:
            if len(self._names) >= NAMES_MAX:
                self._forget_one()
            name = _Name(host)
        self._names[host] = name  # last, as the one that was used last
        return name

    def _forget_one(self) -> None:
        for host, name in self._names.items():
            if name.ended is None:
                del self._names[host]
                return
        raise OSError("too many names are being looked up")

    async def _looked_up(self, name: _Name) -> None:
        """Wait until the look-up has ended, or hangs and there are earlier addresses to use."""
        loop = asyncio.get_running_loop()
        name.waiting += 1
        try:
            if name.ended is None:
                name.ended, name.asked_at = loop.create_future(), loop.time()
                self._queue.append(name)
                self._start_queued()
            patience_s = max(0.0, name.asked_at + PATIENCE_S - loop.time()) if name.is_usable(loop.time()) else None
            if name.ended is not None:  # it ends at once if there is no thread
                await asyncio.wait((name.ended,), timeout=patience_s)
        finally:
            name.waiting -= 1

    # --- look-ups -------------------------------------------------------------------------------------------------

    def _start_queued(self) -> None:
        """Start the look-ups for which there are threads, in order; drop those that no call waits for any more."""
        queued, self._queue = self._queue, deque()
        for name in queued:
            if not name.waiting:
                name.ended = None
            elif self._has_thread_for(name):
                self._start(name)
            else:
                self._queue.append(name)

    def _has_thread_for(self, name: _Name) -> bool:
        """Whether the name may take another thread. `localhost` always may: it needs no name server."""
        return name.host == "localhost" or self._in_progress < (THREADS_MAX if name.addresses else UNKNOWN_THREADS_MAX)

    def _start(self, name: _Name) -> None:
        self._in_progress += 1
        loop = asyncio.get_running_loop()
        try:
            self._start_thread(partial(self._in_thread, loop, name))
        except RuntimeError as error:  # the system has no more threads
            self._end(name, OSError(str(error)))

    def _in_thread(self, loop: asyncio.AbstractEventLoop, name: _Name) -> None:
        answer = _looked_up(name.host)
        with suppress(RuntimeError):  # the loop has been closed
            loop.call_soon_threadsafe(self._end, name, answer)

    def _end(self, name: _Name, answer: tuple[Address, ...] | OSError) -> None:
        self._in_progress -= 1
        now = asyncio.get_running_loop().time()
        if isinstance(answer, OSError):
            name.failure, name.failed_at = answer, now
            if answer.errno in _DOESNT_EXIST:
                name.addresses = ()
        else:
            name.addresses, name.found_at, name.failure = answer, now, None
        ended, name.ended = name.ended, None
        if ended is not None:
            ended.set_result(None)
        self._start_queued()


def _looked_up(host: str) -> tuple[Address, ...] | OSError:
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP)
    except OSError as error:
        return error
    except Exception as error:  # UnicodeError, for one: a label of more than 63 characters
        return OSError(f"{type(error).__name__}: {error}")
    return tuple(found) or OSError("no addresses")  # type: ignore[arg-type]


def _literal(host: str) -> Address | None:
    """The address that the host itself is, which needs no look-up."""
    if not host[-1:].isdigit() and ":" not in host:
        return None
    try:
        address = ip_address(host)
    except ValueError:
        return None
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    where = (host, 0) if address.version == 4 else (host, 0, 0, 0)
    return family, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", where


def _with_port(address: Address, port: int) -> Address:
    family, kind, protocol, name, (host, _, *rest) = address
    return family, kind, protocol, name, (host, port, *rest)  # type: ignore[return-value]
