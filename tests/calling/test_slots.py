"""Who may call when slots are short: participants that hang keep no slot from one that answers. In virtual time."""

import asyncio
from collections import Counter
from typing import Any, Final

import httpx
import pytest

from app.calling.caller import Caller, Target
from app.calling.slots import HALVINGS_MAX, RESERVE_PART, SILENT_MAX, Group, Slots
from app.protocol.messages import Call
from app.protocol.values import Branch
from holdfast.wire import Answer, Operation
from tests.harness.virtual_time import in_virtual_time, now, pass_time

CALLS_MAX: Final = 1000
TIMEOUT_S: Final = 5.0
QUICK_S: Final = 0.01
CALL: Final = Call(
    transaction_id="01a1fc2e-20e8-7db5-893d-508caa6c9bfb",
    branch=Branch(name="b", participant="b"),
    operation=Operation.CONFIRM,
    attempt=1,
)


class Participants(httpx.AsyncBaseTransport):
    """Those in `dead` never answer, the others do after QUICK_S."""

    def __init__(self) -> None:
        self.dead: set[str] = set()
        self.in_progress: Counter[str] = Counter()
        self.called: set[str] = set()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        host = request.url.host
        self.in_progress[host] += 1
        self.called.add(host)
        try:
            if host in self.dead:
                await asyncio.get_running_loop().create_future()
            await pass_time(QUICK_S)
            return httpx.Response(200)
        finally:
            self.in_progress[host] -= 1


class Load:
    """Coordinates calls: `keep` has a number of calls to a host in progress or waiting, all the time."""

    def __init__(self, calls_max: int = CALLS_MAX) -> None:
        self.participants = Participants()
        self.caller = Caller(
            self.participants, coordinator_id="c-1", response_max_bytes=1000, calls_max=calls_max, clock=now
        )
        self._keeping: list[asyncio.Task[None]] = []

    async def call(
        self, host: str, *, concurrency_max: int = 64, timeout_s: float = TIMEOUT_S
    ) -> tuple[Answer, str | None, Any]:
        """The answer, the error, and how long it took."""
        target = Target(
            url=httpx.URL(f"http://{host}/"), timeout_s=timeout_s, slots_of=host, concurrency_max=concurrency_max
        )
        began = now()
        answered, _ = await self.caller.call(CALL, target)
        return answered.answer, answered.error, now() - began

    def keep(self, host: str, count: int) -> None:
        self._keeping += [asyncio.create_task(self._keep(host)) for _ in range(count)]

    async def _keep(self, host: str) -> None:
        while True:
            await self.call(host)

    async def end(self) -> None:
        for task in self._keeping:
            task.cancel()
        await asyncio.gather(*self._keeping, return_exceptions=True)


@pytest.mark.parametrize("answered_before", [False, True])
@pytest.mark.parametrize(("dead", "since_s"), [(40, 0.0), (400, TIMEOUT_S + 0.1)])
@in_virtual_time
async def test_dead_participants_never_delay_a_healthy_one(dead: int, since_s: float, *, answered_before: bool) -> None:
    """Forty from the beginning; any number once they are known not to answer."""
    load = Load()
    hosts = [f"dead{n}" for n in range(dead)]
    if answered_before:
        for host in hosts:
            load.keep(host, 1)
        await pass_time(1.0)
    load.participants.dead |= set(hosts)
    for host in hosts:
        load.keep(host, 1600 // dead)
    await pass_time(since_s)
    load.participants.called.clear()
    for _ in range(60):
        assert await load.call("healthy") == (Answer.SUCCEEDED, None, pytest.approx(QUICK_S))
        await pass_time(0.1913)
    if dead * RESERVE_PART < CALLS_MAX:
        assert load.participants.called >= set(hosts), "each one is tried all the same"
    await load.end()


@in_virtual_time
async def test_what_does_not_answer_leaves_most_slots_to_the_others() -> None:
    load = Load()
    load.participants.dead |= {f"dead{n}" for n in range(40)}
    for host in load.participants.dead:
        load.keep(host, 100)
    await pass_time(3.1 * TIMEOUT_S)
    assert sum(load.participants.in_progress.values()) < 0.4 * CALLS_MAX
    quick = await asyncio.gather(*(load.call("healthy") for _ in range(64)))
    assert quick == [(Answer.SUCCEEDED, None, pytest.approx(QUICK_S))] * 64, "and even its whole limit at once"
    await load.end()


@in_virtual_time
async def test_a_participant_that_answers_again_has_its_share_again() -> None:
    load = Load()
    load.participants.dead.add("a")
    load.keep("a", 100)
    await pass_time(2.5 * TIMEOUT_S)
    assert load.participants.in_progress["a"] == CALLS_MAX >> HALVINGS_MAX
    load.participants.dead.clear()
    await pass_time(TIMEOUT_S)
    assert load.participants.in_progress["a"] == 64
    await load.end()


@in_virtual_time
async def test_the_error_says_which_limit_it_was() -> None:
    load = Load(calls_max=16)
    load.participants.dead |= {"a", "b", "c"}
    await load.call("c", timeout_s=0.1)
    calls = [("a", 1), ("c", 64), *[("b", 64)] * 10]
    held = [asyncio.create_task(load.call(host, concurrency_max=most, timeout_s=100.0)) for host, most in calls]
    await pass_time(0.1)
    errors = [(await load.call(host, concurrency_max=most))[1] for host, most in calls[:3]]
    assert errors == [
        "nothing was sent: all 1 slots were taken (concurrency_max)",
        "nothing was sent: the participant doesn't answer, and 1 of its calls were in progress",
        "nothing was sent: too many calls were in progress (HOLDFAST_CALLS_MAX)",
    ]
    for task in held:
        task.cancel()
    await asyncio.gather(*held, return_exceptions=True)


@in_virtual_time
async def test_calls_that_wait_start_in_their_order() -> None:
    load = Load()
    order: list[int] = []

    async def call(number: int) -> None:
        await load.call("a", concurrency_max=1)
        order.append(number)

    await asyncio.gather(*(call(n) for n in range(20)))
    assert order == list(range(20))


@in_virtual_time
async def test_a_new_limit_holds_from_the_next_call_on() -> None:
    load = Load()
    calls = [asyncio.create_task(load.call("a", concurrency_max=2)) for _ in range(5)]
    await pass_time(0.0)
    assert load.participants.in_progress["a"] == 2
    calls.append(asyncio.create_task(load.call("a", concurrency_max=4)))
    await pass_time(QUICK_S)
    await pass_time(0.0)
    assert load.participants.in_progress["a"] == 4
    await asyncio.gather(*calls)


# --- slots by themselves ----------------------------------------------------------------------------------------------


def taken(slots: Slots, name: str, count: int, concurrency_max: int = 1000) -> Group:
    group = slots.group(name, concurrency_max)
    for _ in range(count):
        assert slots.take(group)
    return group


@pytest.mark.parametrize(
    ("others", "halvings", "concurrency_max", "share"),
    [
        *((0, 0, 9999, 500), (0, 0, 10, 10), (0, 1, 9999, 333), (0, 7, 9999, 7), (400, 0, 9999, 100)),
        *((500, 0, 9999, 29), (500, 3, 9999, 29), (500, 5, 9999, 15), (874, 7, 9999, 1), (875, 7, 9999, 0)),
        *((875, 1, 9999, 0), (875, 0, 9999, 7), (999, 0, 9999, 1), (1000, 0, 9999, 0)),
    ],
)
def test_the_share_of_a_group(others: int, halvings: int, concurrency_max: int, share: int) -> None:
    slots = Slots(1000)
    for n in range(others):
        taken(slots, f"other{n}", 1)
    group = slots.group("a", concurrency_max)
    group.halvings = halvings
    for _ in range(share):
        assert slots.take(group)
    assert not slots.take(group)


def test_each_failure_halves_and_each_answer_doubles() -> None:
    slots, seen = Slots(100), []
    group = taken(slots, "a", 20)
    for was_answered in (True, False, None, False, True, *[False] * 7, *[True] * 8):
        slots.give_back(group, was_answered=was_answered)
        seen.append(group.halvings)
    assert seen == [0, 1, 1, 2, 1, 2, 3, 4, 5, 6, 7, 7, 6, 5, 4, 3, 2, 1, 0, 0]


def test_what_is_idle_and_answers_is_forgotten() -> None:
    slots = Slots(100)
    for n in range(SILENT_MAX + 10):
        slots.give_back(taken(slots, f"silent{n}", 1), was_answered=False)
        slots.give_back(taken(slots, f"a{n}", 1), was_answered=True)
    assert len(slots._groups) == SILENT_MAX
    slots.give_back(taken(slots, "silent0", 1), was_answered=True)
    assert "silent0" not in slots._groups


@in_virtual_time
async def test_who_gives_up_waiting_takes_no_slot() -> None:
    slots = Slots(4)
    group = taken(slots, "a", 2)
    waiting = [asyncio.create_task(slots.wait(group, 10.0)) for _ in range(3)]
    await pass_time(0.0)
    slots.give_back(group, was_answered=True)
    for task in waiting[:2]:  # the first one in the moment in which it is its turn
        task.cancel()
    await pass_time(0.0)
    assert [task.cancelled() for task in waiting] == [True, True, False]
    assert await waiting[2]
    assert not await slots.wait(group, 1.0)
    for _ in range(2):
        slots.give_back(group, was_answered=True)
    assert (slots._free, slots._groups, slots._waiting) == (4, {}, {})


@in_virtual_time
async def test_groups_that_wait_take_turns() -> None:
    slots, served = Slots(2), []
    held: Any = taken(slots, "first", 1), taken(slots, "second", 1)

    async def wait(name: str) -> None:
        group = slots.group(name, 10)
        assert await slots.wait(group, 10.0)
        served.append(name)
        await pass_time(1.0)
        slots.give_back(group, was_answered=True)

    tasks = [asyncio.create_task(wait(name)) for name in ("a", "a", "a", "b", "b", "b")]
    await pass_time(0.0)
    slots.give_back(held[0], was_answered=True)
    await asyncio.gather(*tasks)
    assert served == ["a", "b", "a", "b", "a", "b"]
