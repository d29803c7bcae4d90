"""Look-ups of names: in virtual time, over threads that end when the test says so; and in real daemon threads."""

import asyncio
import gc
import logging
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any, Final

import httpx
import pytest

from app.calling import resolver
from app.calling.resolver import (
    AGE_MAX_S,
    FAILURE_AGE_MAX_S,
    NAMES_MAX,
    PATIENCE_S,
    STALE_MAX_S,
    THREADS_MAX,
    UNKNOWN_THREADS_MAX,
    Resolver,
)
from app.calling.transport import Transport
from tests.harness.fault_server import FaultServer, Reply
from tests.harness.virtual_time import in_virtual_time, now, pass_time

UNKNOWN: Final = socket.gaierror(socket.EAI_NONAME, "Name or service not known")
NO_ANSWER: Final = socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
LIMIT_S: Final = 10.0


class Names:
    """Name servers: those of `hanging` names don't answer, the others do at once."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(socket, "getaddrinfo", self._getaddrinfo)
        self.known: dict[str, list[str] | Exception] = {}
        self.hanging: set[str] = set()
        self.asked: list[str] = []
        self._hung: list[Callable[[], None]] = []

    def start_thread(self, work: Callable[[], None]) -> None:
        """Stands for a thread, which lives until `work` has been carried out."""
        try:
            work()
        except _HangsError:
            self._hung.append(work)

    def answer_all(self) -> None:
        """No name hangs any more, and each look-up that did is answered."""
        self.hanging.clear()
        hung, self._hung = self._hung, []
        for work in hung:
            work()
            self.asked.pop()  # counted when it began

    @property
    def in_progress(self) -> int:
        return len(self._hung)

    def _getaddrinfo(self, host: str, port: Any, **how: Any) -> list[Any]:
        assert how == {"type": socket.SOCK_STREAM, "proto": socket.IPPROTO_TCP}
        self.asked.append(host)
        if host in self.hanging:
            raise _HangsError
        found = self.known.get(host, UNKNOWN)
        if isinstance(found, Exception):
            raise found
        return [(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", (each, 0)) for each in found]


class _HangsError(BaseException):
    pass


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> Names:
    return Names(monkeypatch)


@pytest.fixture
def looks_up(names: Names) -> Resolver:
    return Resolver(start_thread=names.start_thread)


async def found(looks_up: Resolver, host: str, port: int = 80) -> list[str]:
    return [address[4][0] for address in await looks_up.addresses(host, port)]


async def time_taken(looks_up: Resolver, host: str) -> float:
    began = now()
    await looks_up.addresses(host, 80)
    return now() - began


def asking(looks_up: Resolver, *hosts: str) -> list[asyncio.Task[Any]]:
    return [asyncio.create_task(looks_up.addresses(host, 80)) for host in hosts]


async def cancelled(tasks: list[asyncio.Task[Any]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


# --- what is remembered -----------------------------------------------------------------------------------------------


@in_virtual_time
async def test_addresses_carry_the_port_that_was_asked_for(names: Names, looks_up: Resolver) -> None:
    hosts = names.known["a"] = ["10.0.0.1", "10.0.0.2"]
    for port in (80, 8443):
        assert await looks_up.addresses("a", port) == [
            (socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", (host, port)) for host in hosts
        ]
    assert names.asked == ["a"], "a host's ports share its look-up"


@pytest.mark.parametrize(
    ("host", "address"),
    [
        ("127.0.0.1", (socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", ("127.0.0.1", 80))),
        ("::1", (socket.AF_INET6, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", ("::1", 80, 0, 0))),
        ("fd00::abc", (socket.AF_INET6, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", ("fd00::abc", 80, 0, 0))),
    ],
)
@in_virtual_time
async def test_an_address_needs_no_look_up(names: Names, looks_up: Resolver, host: str, address: Any) -> None:
    assert await looks_up.addresses(host, 80) == [address]
    assert names.asked == []


@in_virtual_time
async def test_a_change_is_seen_within_the_age(names: Names, looks_up: Resolver) -> None:
    names.known["a"] = ["10.0.0.1"]
    assert await found(looks_up, "a") == ["10.0.0.1"]
    names.known["a"] = ["10.0.0.2"]
    await pass_time(AGE_MAX_S - 0.01)
    assert await found(looks_up, "a") == ["10.0.0.1"]
    await pass_time(0.01)
    assert await found(looks_up, "a") == ["10.0.0.2"]
    assert names.asked == ["a", "a"]


@in_virtual_time
async def test_a_name_that_does_not_exist_is_looked_up_once_a_second(names: Names, looks_up: Resolver) -> None:
    for _ in range(3):
        with pytest.raises(OSError, match="not known"):
            await looks_up.addresses("a", 80)
    assert names.asked == ["a"]
    names.known["a"] = ["10.0.0.1"]
    await pass_time(FAILURE_AGE_MAX_S)
    assert await found(looks_up, "a") == ["10.0.0.1"]


@in_virtual_time
async def test_a_name_that_does_not_exist_any_more_is_not_used(names: Names, looks_up: Resolver) -> None:
    names.known["a"] = ["10.0.0.1"]
    await looks_up.addresses("a", 80)
    del names.known["a"]
    await pass_time(AGE_MAX_S)
    for _ in range(2):
        with pytest.raises(OSError, match="not known"):
            await looks_up.addresses("a", 80)


@pytest.mark.parametrize("failure", [NO_ANSWER, OSError(24, "Too many open files")])
@in_virtual_time
async def test_known_addresses_outlive_a_failing_name_server(
    names: Names, looks_up: Resolver, failure: OSError
) -> None:
    names.known["a"] = ["10.0.0.1"]
    await looks_up.addresses("a", 80)
    names.known["a"] = failure
    await pass_time(AGE_MAX_S)
    for _ in range(2):
        assert await found(looks_up, "a") == ["10.0.0.1"]
    assert names.asked == ["a", "a"], "and it is asked once a second"
    await pass_time(STALE_MAX_S - AGE_MAX_S - 0.01)
    assert await found(looks_up, "a") == ["10.0.0.1"]
    await pass_time(0.01)
    with pytest.raises(OSError, match=str(failure.strerror)):
        await looks_up.addresses("a", 80)


@pytest.mark.parametrize("known", [[], UnicodeError("label too long")], ids=["none", "no name"])
@in_virtual_time
async def test_whatever_goes_wrong_is_an_os_error(names: Names, looks_up: Resolver, known: Any) -> None:
    names.known["a"] = known
    with pytest.raises(OSError, match=r"no addresses|UnicodeError: label too long"):
        await looks_up.addresses("a", 80)


@in_virtual_time
async def test_without_threads_nothing_is_found(names: Names) -> None:
    def start_thread(_: object) -> None:
        raise RuntimeError("can't start new thread")

    looks_up = Resolver(start_thread=start_thread)
    for _ in range(2 * THREADS_MAX):
        with pytest.raises(OSError, match="can't start new thread"):
            await looks_up.addresses("a", 80)
        await pass_time(FAILURE_AGE_MAX_S)


@in_virtual_time
async def test_of_the_names_those_used_last_are_remembered(names: Names, looks_up: Resolver) -> None:
    names.known["a"] = ["10.0.0.1"]
    for n in range(NAMES_MAX):
        await looks_up.addresses("a", 80)
        names.known[f"a{n}."] = ["10.0.0.1"]
        await looks_up.addresses(f"a{n}.", 80)
    assert names.asked.count("a") == 1
    assert len(looks_up._names) == NAMES_MAX


# --- look-ups that hang -----------------------------------------------------------------------------------------------


@in_virtual_time
async def test_a_name_has_one_look_up_which_its_calls_share(names: Names, looks_up: Resolver) -> None:
    names.hanging.add("a")
    calls = asking(looks_up, *["a"] * 100)
    await pass_time(60.0)
    assert names.asked == ["a"]
    names.known["a"] = ["10.0.0.1"]
    names.answer_all()
    assert {addresses[0][4][0] for addresses in await asyncio.gather(*calls)} == {"10.0.0.1"}


@in_virtual_time
async def test_a_look_up_that_hangs_delays_known_addresses_once(names: Names, looks_up: Resolver) -> None:
    names.known["a"] = ["10.0.0.1"]
    await looks_up.addresses("a", 80)
    names.hanging.add("a")
    await pass_time(AGE_MAX_S)
    assert await time_taken(looks_up, "a") == pytest.approx(PATIENCE_S)
    assert await time_taken(looks_up, "a") == 0.0
    names.known["a"] = ["10.0.0.2"]
    names.answer_all()
    await pass_time(0.0)
    assert await found(looks_up, "a") == ["10.0.0.2"]
    assert names.asked == ["a", "a"]


@in_virtual_time
async def test_addresses_get_too_old_while_a_look_up_hangs(names: Names, looks_up: Resolver) -> None:
    names.known["a"] = ["10.0.0.1"]
    await looks_up.addresses("a", 80)
    names.hanging.add("a")
    await pass_time(STALE_MAX_S)
    calls = asking(looks_up, "a")
    await pass_time(60.0)
    assert not calls[0].done()
    await cancelled(calls)


@in_virtual_time
async def test_hanging_names_keep_out_neither_known_names_nor_localhost(names: Names, looks_up: Resolver) -> None:
    names.known |= {"a": ["10.0.0.1"], "localhost": ["127.0.0.1"], "new": ["10.0.0.2"]}
    await looks_up.addresses("a", 80)
    await pass_time(AGE_MAX_S)
    names.hanging |= {f"hangs{n}" for n in range(1000)}
    calls = asking(looks_up, *names.hanging)
    await pass_time(0.0)
    assert names.in_progress == UNKNOWN_THREADS_MAX
    for host in ("a", "localhost", "127.0.0.1"):
        assert await time_taken(looks_up, host) == 0.0
    assert await found(looks_up, "a") == ["10.0.0.1"]
    assert names.asked.count("a") == 2, "looked up again, not only remembered"
    calls += asking(looks_up, "new")
    await pass_time(60.0)
    assert not calls[-1].done(), "a new name has to wait for a thread"
    await cancelled(calls[:-1])
    names.answer_all()
    assert (await calls[-1])[0][4][0] == "10.0.0.2"
    assert len(names.asked) == UNKNOWN_THREADS_MAX + 4, "look-ups that no call waits for never begin"


@in_virtual_time
async def test_look_ups_are_limited_in_all(names: Names, looks_up: Resolver) -> None:
    hosts = [f"a{n}." for n in range(2 * THREADS_MAX)]
    for host in hosts:
        names.known[host] = ["10.0.0.1"]
        await looks_up.addresses(host, 80)
    await pass_time(AGE_MAX_S)
    names.hanging |= set(hosts)
    calls = asking(looks_up, *hosts)
    await pass_time(0.0)
    assert names.in_progress == THREADS_MAX
    assert {addresses[0][4][0] for addresses in await asyncio.gather(*calls)} == {"10.0.0.1"}
    names.answer_all()
    await pass_time(0.0)
    assert await time_taken(looks_up, hosts[-1]) == 0.0


@in_virtual_time
async def test_a_look_up_that_was_dropped_from_the_queue_is_asked_for_again(names: Names, looks_up: Resolver) -> None:
    names.hanging |= {f"hangs{n}" for n in range(UNKNOWN_THREADS_MAX)}
    names.known["a"] = ["10.0.0.1"]
    calls = asking(looks_up, *names.hanging)
    await pass_time(0.0)
    impatient = asking(looks_up, "a")
    await pass_time(1.0)
    await cancelled(impatient)
    names.answer_all()
    await pass_time(0.0)
    assert await found(looks_up, "a") == ["10.0.0.1"]
    await asyncio.gather(*calls, return_exceptions=True)


@in_virtual_time
async def test_names_in_progress_are_limited(names: Names, looks_up: Resolver) -> None:
    names.hanging |= {f"hangs{n}" for n in range(NAMES_MAX)}
    calls = asking(looks_up, *names.hanging)
    await pass_time(0.0)
    with pytest.raises(OSError, match="too many names"):
        await looks_up.addresses("a", 80)
    await cancelled(calls)


@in_virtual_time
async def test_what_nobody_waits_for_ends_in_silence(
    names: Names, looks_up: Resolver, caplog: pytest.LogCaptureFixture
) -> None:
    names.hanging.add("a")
    names.known["a"] = NO_ANSWER
    calls = asking(looks_up, *["a"] * 10)
    await pass_time(5.0)
    await cancelled(calls)
    names.answer_all()
    await pass_time(0.0)
    del calls
    gc.collect()
    assert caplog.get_records("call") == []
    with pytest.raises(OSError, match="Temporary failure"):
        await looks_up.addresses("a", 80)


# --- real threads -----------------------------------------------------------------------------------------------------


@pytest.fixture
def hanging(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """While this isn't set, the look-ups of names that begin with `hangs` don't return."""
    real, released = socket.getaddrinfo, threading.Event()

    def getaddrinfo(host: Any, *args: Any, **how: Any) -> Any:
        if str(host).startswith("hangs"):
            released.wait()
            raise NO_ANSWER
        return real(host, *args, **how)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    yield released
    released.set()


async def posted(transport: Transport, url: str) -> int:
    request = httpx.Request("POST", url, content=b"{}")
    return (await transport.handle_async_request(request)).status_code


async def test_names_that_hang_delay_no_call_to_another(
    hanging: threading.Event, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "asyncio")
    transport = Transport(response_max_bytes=1000)
    async with FaultServer() as server, asyncio.timeout(LIMIT_S):
        server.script("/try", [Reply(200, {})])
        calls = [asyncio.create_task(posted(transport, f"http://hangs{n}.test/try")) for n in range(64)]
        await asyncio.sleep(0)
        for host in ("localhost", "127.0.0.1"):
            assert await posted(transport, server.url("/try").replace("127.0.0.1", host)) == 200
        looking_up = [thread for thread in threading.enumerate() if thread.name == "holdfast-look-up"]
        assert len(looking_up) >= 64
        assert all(thread.daemon for thread in looking_up), "or the end of the process would wait for them"
        await cancelled(calls)
    await transport.aclose()
    hanging.set()
    for thread in looking_up:
        await asyncio.to_thread(thread.join, LIMIT_S)
    gc.collect()
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


def test_a_look_up_may_end_after_its_loop(hanging: threading.Event) -> None:
    async def give_up() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0):
                await Resolver().addresses("hangs.test", 80)

    failures: list[Any] = []
    hook, threading.excepthook = threading.excepthook, failures.append
    try:
        asyncio.run(give_up())
        looking_up = [thread for thread in threading.enumerate() if thread.name == "holdfast-look-up"]
        hanging.set()
        for thread in looking_up:
            thread.join(LIMIT_S)
    finally:
        threading.excepthook = hook
    assert looking_up
    assert failures == []


def test_the_limits_leave_room() -> None:
    assert resolver.UNKNOWN_THREADS_MAX < resolver.THREADS_MAX
