"""Credit and gateway: whatever crashes, both ledgers say the same in the end."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from holdfast.testing import FakeCoordinator
from tests.examples.examples import Balances, Load, coordinated, running

TEN = {"customer": "ada", "amount_cents": 10_00}
UNTOUCHED = {"available": 1000_00, "authorised": 0, "captured": 0}
AUTHORISED = {"available": 990_00, "authorised": 10_00, "captured": 0}
CAPTURED = {"available": 990_00, "authorised": 0, "captured": 10_00}
LEASE_S = 36


class Payment:
    """Payment with its gateway, and a coordinator that the test plays."""

    def __init__(self, module: Any, coordinator: FakeCoordinator, credit: Balances, cards: Balances) -> None:
        self.module = module
        self.coordinator = coordinator
        self._credit = credit
        self._cards = cards

    async def credit(self, customer: str = "ada") -> tuple[int, int]:
        """What is held and what is charged."""
        account = await self._credit.of("accounts", customer)
        return account["held"], account["charged"]

    async def card(self, customer: str = "ada") -> dict[str, Any]:
        return await self._cards.of("cards", customer)


@pytest.fixture
async def payment(load: Load) -> AsyncIterator[Payment]:
    gateway, module = load("gateway"), load("payment")
    module.gateway = httpx.AsyncClient(transport=httpx.ASGITransport(gateway.app), base_url="http://gateway")  # type: ignore[attr-defined]
    async with running(gateway) as cards, coordinated(module, "payment") as (coordinator, credit):
        yield Payment(module, coordinator, credit, Balances(cards))


@asynccontextmanager
async def gateway_down(payment: Payment) -> AsyncIterator[None]:
    def unreachable(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("down", request=request)

    real = payment.module.gateway
    payment.module.gateway = httpx.AsyncClient(transport=httpx.MockTransport(unreachable), base_url="http://gateway")
    yield
    payment.module.gateway = real


async def test_authorised_held_captured_and_charged_once(payment: Payment) -> None:
    branch = payment.coordinator.branch(TEN)
    assert [(await branch.try_()).ok, (await branch.try_()).ok] == [True, True]
    assert (await payment.credit(), await payment.card()) == ((10_00, 0), AUTHORISED)
    assert [(await branch.confirm()).ok, (await branch.confirm()).ok] == [True, True]
    assert (await payment.credit(), await payment.card()) == ((0, 10_00), CAPTURED)


async def test_a_cancel_voids_and_releases_once(payment: Payment) -> None:
    branch = payment.coordinator.branch(TEN)
    await branch.try_()
    assert [(await branch.cancel()).ok, (await branch.cancel()).ok] == [True, True]
    assert (await payment.credit(), await payment.card()) == ((0, 0), UNTOUCHED)
    assert (await branch.confirm()).problem == "already-cancelled"


async def test_a_declined_card_is_a_refusal(payment: Payment) -> None:
    answer = await payment.coordinator.branch({"customer": "bob", "amount_cents": 10_01}).try_()
    assert (answer.status, answer.detail) == (409, "insufficient funds")
    assert (await payment.credit("bob"), await payment.card("bob")) == ((0, 0), {**UNTOUCHED, "available": 10_00})


async def test_over_the_credit_limit_the_authorisation_is_voided_before_the_refusal(payment: Payment) -> None:
    branch = payment.coordinator.branch({"customer": "ada", "amount_cents": 500_01})
    assert (await branch.try_()).detail == "over the credit limit"
    assert (await payment.credit(), await payment.card()) == ((0, 0), UNTOUCHED)
    assert (await branch.try_()).problem == "refused", "its reference was voided"
    assert (await branch.cancel()).ok
    assert (await payment.credit(), await payment.card()) == ((0, 0), UNTOUCHED)


@pytest.mark.parametrize("at", ["marked", "handled"])
async def test_a_cancel_after_a_crash_voids_what_try_may_have_done(payment: Payment, at: str) -> None:
    branch = payment.coordinator.branch(TEN)
    await branch.crash("try", at=at)
    assert await payment.card() == (AUTHORISED if at == "handled" else UNTOUCHED)
    assert await payment.credit() == (0, 0)
    payment.coordinator.pass_time(LEASE_S)
    assert (await branch.cancel()).ok
    assert (await payment.credit(), await payment.card()) == ((0, 0), UNTOUCHED)


async def test_a_try_after_a_crash_authorises_no_second_time(payment: Payment) -> None:
    branch = payment.coordinator.branch(TEN)
    await branch.crash("try", at="handled")
    payment.coordinator.pass_time(LEASE_S)
    assert (await branch.try_()).ok
    assert (await payment.credit(), await payment.card()) == ((10_00, 0), AUTHORISED)


async def test_a_confirm_after_a_crash_captures_no_second_time(payment: Payment) -> None:
    branch = payment.coordinator.branch(TEN)
    await branch.try_()
    await branch.crash("confirm", at="handled")
    assert (await payment.credit(), await payment.card()) == ((10_00, 0), CAPTURED)
    payment.coordinator.pass_time(LEASE_S)
    assert (await branch.confirm()).ok
    assert (await payment.credit(), await payment.card()) == ((0, 10_00), CAPTURED)


async def test_with_the_gateway_down_nothing_is_refused_and_nothing_is_lost(payment: Payment) -> None:
    branch = payment.coordinator.branch(TEN)
    async with gateway_down(payment):
        assert (await branch.try_()).status >= 500
    assert (await branch.try_()).ok
    async with gateway_down(payment):
        assert (await branch.cancel()).status >= 500
        assert await payment.credit() == (10_00, 0)
    assert (await branch.cancel()).ok
    assert (await payment.credit(), await payment.card()) == ((0, 0), UNTOUCHED)


async def test_a_hold_whose_time_is_up_is_voided_after_asking(payment: Payment) -> None:
    await payment.coordinator.branch(TEN).try_()
    payment.coordinator.pass_time(61)
    payment.coordinator.decision = "cancel"
    await payment.coordinator.reap()
    assert (await payment.credit(), await payment.card()) == ((0, 0), UNTOUCHED)
