"""Every order and duplication of try, confirm, cancel and expiry: effects exactly once, no hanging hold.

On SQLite, PostgreSQL and MariaDB, with an Engine and an AsyncEngine; one after the other and at the same time.
"""

import asyncio
import itertools
from collections import Counter

import pytest

from holdfast.testing import Answer, Branch, FakeCoordinator
from tests.harness.participant_app import Service

EVENTS = ("try", "confirm", "cancel", "lapse", "abandon")
LENGTH_MAX = 3

# Written from docs/reference/protocol.md, section 5, independently of the code: state → event → (next state, status).
MODEL: dict[str | None, dict[str, tuple[str | None, int | None]]] = {
    None: {"try": ("held", 200), "confirm": (None, 409), "cancel": ("cancelled", 200)},
    "held": {
        "try": ("held", 200),
        "confirm": ("confirmed", 200),
        "cancel": ("cancelled", 200),
        "lapse": ("cancelled", None),
        "abandon": ("expired", None),
    },
    "confirmed": {"try": ("confirmed", 200), "confirm": ("confirmed", 200), "cancel": ("confirmed", 409)},
    "cancelled": {"try": ("cancelled", 409), "confirm": ("cancelled", 409), "cancel": ("cancelled", 200)},
    "expired": {"try": ("expired", 409), "confirm": ("expired", 409), "cancel": ("expired", 200)},
}


async def let(event: str, branch: Branch) -> Answer | None:
    """Have something happen; a call that is told "busy" is made again, as the coordinator does."""
    calls = {"try": branch.try_, "confirm": branch.confirm, "cancel": branch.cancel}
    if event in calls:
        while (answer := await calls[event]()).problem == "busy":
            continue
        return answer
    branch.coordinator.decision = "unknown" if event == "lapse" else "unreachable"
    branch.coordinator.pass_time(61 if event == "lapse" else 3601)
    await branch.coordinator.reap()
    return None


def check_effects(effects: Counter[str], phase: str | None) -> None:
    """What must be true whatever happened, in whatever order."""
    assert max(effects.values(), default=0) <= 1, "an effect happened twice"
    assert effects["confirm"] + effects["cancel"] <= effects["try"], "settled what was not held"
    is_settled = effects["confirm"] + effects["cancel"] == effects["try"]
    assert is_settled or phase == "held", "a hold was left hanging"
    assert bool(effects["confirm"]) == (phase == "confirmed")


async def test_one_after_the_other(service: Service, coordinator: FakeCoordinator) -> None:
    for length in range(1, LENGTH_MAX + 1):
        for events in itertools.product(EVENTS, repeat=length):
            branch = coordinator.branch({"quantity": 2})
            state: str | None = None
            for event in events:
                state, status = MODEL[state].get(event, (state, None))
                answer = await let(event, branch)
                assert (answer and answer.status) == status, events
                assert await branch.phase() == state, events
            check_effects(await service.effects(branch.transaction_id), state)


@pytest.mark.parametrize(
    "calls",
    ["try try try", "try cancel", "try try cancel cancel", "cancel cancel cancel"],
)
async def test_at_the_same_time_from_nothing(service: Service, coordinator: FakeCoordinator, calls: str) -> None:
    for _ in range(10):
        branch = coordinator.branch({"quantity": 2})
        answers = await asyncio.gather(*(let(call, branch) for call in calls.split()))
        assert all(answer is not None and answer.status in (200, 409) for answer in answers)
        phase = await branch.phase()
        assert phase == ("cancelled" if "cancel" in calls else "held")
        check_effects(await service.effects(branch.transaction_id), phase)


@pytest.mark.parametrize(
    "calls",
    ["confirm confirm confirm", "cancel cancel cancel", "confirm cancel", "try confirm try", "confirm cancel cancel"],
)
async def test_at_the_same_time_on_a_hold(service: Service, coordinator: FakeCoordinator, calls: str) -> None:
    for _ in range(10):
        branch = coordinator.branch({"quantity": 2})
        assert (await branch.try_()).ok
        answers = await asyncio.gather(*(let(call, branch) for call in calls.split()))
        assert all(answer is not None and answer.status in (200, 409) for answer in answers)
        phase = await branch.phase()
        assert phase in {f"{call}led" if call == "cancel" else f"{call}ed" for call in calls.split()} - {"tryed"}
        check_effects(await service.effects(branch.transaction_id), phase)


@pytest.mark.parametrize("event", ["lapse", "abandon"])
@pytest.mark.parametrize("call", ["confirm", "cancel"])
async def test_expiry_races_a_call(service: Service, coordinator: FakeCoordinator, event: str, call: str) -> None:
    for _ in range(5):
        branch = coordinator.branch({"quantity": 2})
        assert (await branch.try_()).ok
        answer, _ = await asyncio.gather(let(call, branch), let(event, branch))
        phase = await branch.phase()
        assert answer is not None
        if call == "confirm":
            assert (phase == "confirmed") == answer.ok
        else:
            assert answer.ok
        assert phase in ("confirmed", "cancelled", "expired")
        check_effects(await service.effects(branch.transaction_id), phase)


async def test_siblings_and_other_transactions_are_not_touched(service: Service, coordinator: FakeCoordinator) -> None:
    left = coordinator.branch({"quantity": 1}, name="left")
    right = coordinator.branch({"quantity": 2}, name="right", transaction_id=left.transaction_id)
    other = coordinator.branch({"quantity": 3}, name="left")
    for branch in (left, right, other):
        assert (await branch.try_()).ok
    assert (await left.cancel()).ok
    assert [await branch.phase() for branch in (left, right, other)] == ["cancelled", "held", "held"]
    assert (await right.confirm()).ok
    assert (await service.effects(left.transaction_id)) == Counter({"try": 2, "cancel": 1, "confirm": 1})
