"""The semantic lock: nothing is sold twice, nothing stays reserved."""

import asyncio

from tests.examples.examples import Load, coordinated

TWO = {"sku": "A-1", "quantity": 2}


async def test_a_hold_is_visible_and_becomes_a_sale_however_often_it_is_asked_for(load: Load) -> None:
    async with coordinated(load("inventory"), "inventory") as (coordinator, balances):
        branch = coordinator.branch(TWO)
        assert (await branch.try_()).ok
        assert (await branch.try_()).ok
        assert await balances.of("stock", "A-1") == {"on_hand": 100, "reserved": 2, "sold": 0}
        assert await balances.states() == ["held"]
        assert (await branch.confirm()).ok
        assert (await branch.confirm()).ok
        assert await balances.of("stock", "A-1") == {"on_hand": 98, "reserved": 0, "sold": 2}
        assert await balances.states() == []


async def test_a_cancel_puts_everything_back_once(load: Load) -> None:
    async with coordinated(load("inventory"), "inventory") as (coordinator, balances):
        branch = coordinator.branch(TWO)
        await branch.try_()
        assert (await branch.cancel()).ok
        assert (await branch.cancel()).ok
        assert (await branch.try_()).problem == "already-cancelled"
        assert await balances.of("stock", "A-1") == {"on_hand": 100, "reserved": 0, "sold": 0}


async def test_what_is_held_by_others_is_refused_and_leaves_nothing(load: Load) -> None:
    async with coordinated(load("inventory"), "inventory") as (coordinator, balances):
        assert (await coordinator.branch({"sku": "B-2", "quantity": 2}).try_()).ok
        refused = await coordinator.branch({"sku": "B-2", "quantity": 2}).try_()
        assert (refused.status, refused.problem) == (409, "refused")
        assert refused.detail == "fewer than 2 of B-2 are free"
        assert await balances.of("stock", "B-2") == {"on_hand": 3, "reserved": 2, "sold": 0}


async def test_at_the_same_time_no_more_is_held_than_there_is(load: Load) -> None:
    async with coordinated(load("inventory"), "inventory") as (coordinator, balances):
        branches = [coordinator.branch({"sku": "B-2", "quantity": 1}) for _ in range(6)]
        answers = await asyncio.gather(*(branch.try_() for branch in branches))
        assert sorted(answer.status for answer in answers) == [200] * 3 + [409] * 3
        assert await balances.of("stock", "B-2") == {"on_hand": 3, "reserved": 3, "sold": 0}


async def test_a_hold_whose_time_is_up_is_kept_or_released_as_was_decided(load: Load) -> None:
    async with coordinated(load("inventory"), "inventory") as (coordinator, balances):
        await coordinator.branch(TWO).try_()
        coordinator.pass_time(61)
        coordinator.decision = "unreachable"
        await coordinator.reap()
        assert (await balances.of("stock", "A-1"))["reserved"] == 2
        coordinator.pass_time(61)
        coordinator.decision = "cancel"
        await coordinator.reap()
        assert (await balances.of("stock", "A-1"))["reserved"] == 0


async def test_limits_come_from_the_environment(load: Load) -> None:
    module = load("inventory", HOLD_TTL_MAX_S="3", HOLD_MAX_S="5")
    async with coordinated(module, "inventory") as (coordinator, balances):
        branch = coordinator.branch(TWO)
        assert (await branch.try_()).hold_ttl_s == 3
        coordinator.decision = "unreachable"
        coordinator.pass_time(6)
        await coordinator.reap()
        assert await branch.phase() == "expired"
        assert (await balances.of("stock", "A-1"))["reserved"] == 0
        assert (await branch.confirm()).problem == "hold-expired"


async def test_a_payload_that_makes_no_sense_is_refused(load: Load) -> None:
    async with coordinated(load("inventory"), "inventory") as (coordinator, _):
        assert (await coordinator.branch({"sku": "A-1", "quantity": 0}).try_()).problem == "invalid-payload"
        assert (await coordinator.branch({"sku": "none", "quantity": 1}).try_()).problem == "refused"
