"""The stories: what is done, in which order, and what must come of it.

Nothing here sleeps: each step waits for what the step before it brought about, and gates hold back the one call that
would make the order a matter of luck.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Final

import httpx

from examples.demo.gate import Exchange
from examples.demo.ledger import PARTICIPANTS, reconcile
from examples.demo.saga_stories import answer_lost, undone_in_reverse
from examples.demo.steps import WITHIN_S, found, hung, reached, tell
from examples.demo.story import NO_ANSWER, Story, StoryFailed
from examples.demo.world import World

PRICE_CENTS: Final = 25_00
ALL_HELD: Final = dict.fromkeys(PARTICIPANTS, "held")


async def booked(world: World, story: Story) -> None:
    before = await world.ledger()
    answer = await _place(world, story, "order-1", "ada", 2)
    transaction = await _finished(world, story, "order-1")
    story.expect("what the customer is told", (201, "booked"), _told(answer))
    _expect_end(story, transaction, "confirmed")
    await tell(world, story, transaction)
    await _reconcile(world, story, before, booked=2)


async def refused(world: World, story: Story) -> None:
    before = await world.ledger()
    answer = await _place(world, story, "order-2", "bob", 2)
    transaction = await _finished(world, story, "order-2")
    story.expect("what the customer is told", (409, "refused"), _told(answer))
    _expect_end(story, transaction, "cancelled")
    reason = {"code": "refused", "branch": "payment", "detail": "insufficient funds"}
    story.expect("why", reason, transaction["reason"])
    confirms = sum(branch["attempts"]["confirm"] for branch in transaction["branches"])
    story.expect("confirms that were sent", 0, confirms)
    await tell(world, story, transaction)
    await _reconcile(world, story, before, booked=0)


async def participant_down(world: World, story: Story) -> None:
    before = await world.ledger()
    await world.route(through_gates=["shipping"])
    held = world.gates["shipping"].hold_answers("try")
    placing = asyncio.create_task(_place(world, story, "order-3", "ada", 1))
    await reached(held.reached, "shipping has answered its Try")
    world["shipping"].kill()
    story.happened("shipping holds, and is killed (SIGKILL) before its answer has arrived")
    await world.route()
    held.let_pass()
    answer = await placing
    story.expect("what the customer is told", (201, "booked"), _told(answer))

    transaction_id = answer.json()["transaction_id"]
    listed = await found(f"{transaction_id} is listed as hung", lambda: hung(world, transaction_id))
    branch = next(each for each in listed["branches"] if each["name"] == "shipping")
    why = branch["last_error"].partition(":")[0]
    story.happened(f"GET /v1/admin/hung lists it: shipping, {branch['hung_reason']}, {why}")
    story.expect("why it hangs", "confirm_unanswered", branch["hung_reason"])
    await found("the others don't wait for shipping", lambda: _others_confirmed(world, transaction_id))
    story.happened("shipping is started again; nobody does anything else")
    await world.start("shipping")
    transaction = await _finished(world, story, "order-3")
    _expect_end(story, transaction, "confirmed")
    story.expect("still listed as hung", None, await hung(world, transaction_id))
    await tell(world, story, transaction)
    await _reconcile(world, story, before, booked=1)


async def coordinator_killed(world: World, story: Story) -> None:
    before = await world.ledger()
    await world.route(through_gates=PARTICIPANTS)
    confirms = [gate.hold_requests("confirm") for gate in world.gates.values()]
    answer = await _place(world, story, "order-4", "ada", 1)
    story.expect("what the customer is told", (201, "booked"), _told(answer))
    for confirm in confirms:
        await reached(confirm.reached, "all Confirms are on their way")
    transaction_id = answer.json()["transaction_id"]
    decision = await world.ask("GET", f"/v1/transactions/{transaction_id}/decision")
    story.expect("what is durable", "confirm", decision["decision"])
    world["coordinator"].kill()
    story.happened("three Confirms are held back on the network; the coordinator is killed (SIGKILL): they are lost")
    for confirm in confirms:
        confirm.cut()
    story.expect("what the participants know", ALL_HELD, await _states(world, transaction_id))
    _clear_the_way(world)
    await world.route()
    story.happened("the coordinator is started again on its database")
    await world.start("coordinator")
    transaction = await _finished(world, story, "order-4")
    _expect_end(story, transaction, "confirmed")
    await tell(world, story, transaction)
    await _reconcile(world, story, before, booked=1)


async def left_alone(world: World, story: Story) -> None:
    before = await world.ledger()
    decided, undecided = await _begin_both(world, story)
    both = {decided: "confirm", undecided: "cancel"}
    world["order"].kill()
    world["coordinator"].kill()
    story.happened("initiator and coordinator are killed (SIGKILL); every participant holds for both orders")
    for gate in world.gates.values():
        gate.closed = True  # whatever the coordinator may say later: participants must find out by asking
        gate.forget()
    for transaction_id in both:
        story.expect("what the participants have", ALL_HELD, await _states(world, transaction_id))

    await found("every participant has asked in vain", lambda: _all_asked_in_vain(world, both))
    story.happened("the holds' time is up: everybody has asked what was decided, nobody answers, everybody holds on")
    for transaction_id in both:
        story.expect("what the participants do in doubt", ALL_HELD, await _states(world, transaction_id))
    story.happened("the coordinator is started again; its own calls still don't get through")
    await world.start("coordinator")
    await found("every participant has been told what was decided", lambda: _all_asked(world, both))
    released = await found("order-5 is released", lambda: _released(world, undecided))
    story.expect("order-5 after asking", dict.fromkeys(PARTICIPANTS), released)
    story.expect("order-6 after asking", ALL_HELD, await _states(world, decided))
    _tell_questions(world, story, {undecided: "order-5", decided: "order-6"})
    story.happened("the coordinator's calls get through again, and so does the initiator")
    _clear_the_way(world)
    await world.start("order")
    await _finish_both(world, story)
    await _reconcile(world, story, before, booked=1)


async def _begin_both(world: World, story: Story) -> tuple[str, str]:
    """Order-6, confirmed but for its Confirms, and order-5, undecided; the ids of their transactions."""
    await world.route(through_gates=PARTICIPANTS)
    confirms = [gate.hold_requests("confirm") for gate in world.gates.values()]
    answer = await _place(world, story, "order-6", "ada", 1)
    story.expect("what the customer of order-6 is told", (201, "booked"), _told(answer))
    for confirm in confirms:
        await reached(confirm.reached, "all Confirms are on their way")
    story.happened("the Confirms of order-6 are held back on the network")
    held = world.gates["shipping"].hold_answers("try")
    lost = asyncio.create_task(_place_in_vain(world, story, "order-5"))
    await reached(held.reached, "shipping has answered its Try")
    transaction = await world.find_transaction("order-5")

    async def all_hold() -> bool | None:
        return True if await _states(world, transaction["id"]) == ALL_HELD else None

    await found("every participant holds for order-5", all_hold)
    story.happened("shipping's answer to the Try of order-5 is held back too: order-5 is undecided")
    story.expect("order-5 before the crash", "undecided", transaction["decision"])
    lost.add_done_callback(lambda task: task.exception())
    return answer.json()["transaction_id"], transaction["id"]


async def _finish_both(world: World, story: Story) -> None:
    five = await _finished(world, story, "order-5")
    six = await _finished(world, story, "order-6")
    _expect_end(story, five, "cancelled")
    story.expect("why order-5 was cancelled", "timed_out", five["reason"]["code"])
    _expect_end(story, six, "confirmed")
    again = await _place(world, story, "order-5", "ada", 1)
    story.expect("what the initiator learns of order-5", (409, "refused"), _told(again))
    story.expect("what it knows of order-6", "booked", (await world.find_order("order-6"))["status"])
    await tell(world, story, five, label="order-5")
    await tell(world, story, six, label="order-6")


# --- steps -------------------------------------------------------------------------------------------------------


async def _place(world: World, story: Story, order_id: str, customer: str, quantity: int) -> httpx.Response:
    story.note("customer", "order", order_id, f"{quantity} of A-1 for {customer}, please")
    order = {"order_id": order_id, "customer": customer, "sku": "A-1", "quantity": quantity, "day": "monday"}
    answer = await world.order(order)
    status, said = _told(answer)
    story.note("order", "customer", order_id, f"{status} {said}")
    return answer


async def _place_in_vain(world: World, story: Story, order_id: str) -> None:
    try:
        await _place(world, story, order_id, "ada", 1)
    except httpx.HTTPError:
        story.note("order", "customer", order_id, NO_ANSWER)


async def _reconcile(world: World, story: Story, before: Any, *, booked: int) -> None:
    story.ledger = await world.ledger()
    story.expectations += reconcile(before, story.ledger, booked=booked, booked_cents=booked * PRICE_CENTS)


async def _finished(world: World, story: Story, order_id: str) -> dict[str, Any]:
    """The order's transaction at its end; the coordinator itself is asked to wait for it."""
    transaction = await world.find_transaction(order_id)
    if transaction is None:
        raise StoryFailed(f"no transaction was begun for {order_id}")
    prefer = {"Prefer": f"wait={WITHIN_S / 2:g}"}
    ended: dict[str, Any] = await world.ask("GET", f"/v1/transactions/{transaction['id']}", headers=prefer)
    return ended


async def _others_confirmed(world: World, transaction_id: str) -> bool | None:
    transaction = await world.ask("GET", f"/v1/transactions/{transaction_id}")
    phases = {branch["name"]: branch["phase"] for branch in transaction["branches"]}
    return True if phases == {"inventory": "confirmed", "payment": "confirmed", "shipping": "confirming"} else None


async def _states(world: World, transaction_id: str) -> dict[str, str | None]:
    """What each participant's row of the transaction says, while it is open."""
    balances = await world.balances()
    holds = {name: balances[name]["holds"] for name in PARTICIPANTS}
    return {
        name: next((hold["state"] for hold in holds[name] if hold["transaction_id"] == transaction_id), None)
        for name in PARTICIPANTS
    }


async def _released(world: World, transaction_id: str) -> dict[str, str | None] | None:
    states = await _states(world, transaction_id)
    return None if any(states.values()) else states


async def _all_asked_in_vain(world: World, transaction_ids: Iterable[str]) -> bool | None:
    """True when every participant has asked about one of the transactions and got no answer.

    About the other one, too, perhaps: a coordinator that is silent is left alone for a while before the next question.
    """
    for gate in world.questions.values():
        asked = [each for each in gate.exchanges if any(id_ in each.path for id_ in transaction_ids)]
        if not any(_decision(each) is None for each in asked):
            return None
    return True


async def _all_asked(world: World, answers: dict[str, Any]) -> bool | None:
    """True when every participant has asked about every transaction, and got the answer given here."""
    for gate in world.questions.values():
        for transaction_id, answer in answers.items():
            asked = [each for each in gate.exchanges if transaction_id in each.path]
            if not any(_decision(each) == answer for each in asked):
                return None
    return True


def _tell_questions(world: World, story: Story, labels: dict[str, str]) -> None:
    does = {None: NO_ANSWER, "confirm": "confirm: keeps its hold", "cancel": "cancel: releases its hold"}
    for name, gate in world.questions.items():
        for each in gate.exchanges:
            label = labels.get(each.path.split("/")[3])
            if label is not None:
                decision = _decision(each)
                answer = does.get(decision, f"{decision}: asks again later")
                story.note_at(each.at, name, "coordinator", f"decided? {label}", answer)


def _decision(exchange: Exchange) -> str | None:
    return None if exchange.status is None else str(exchange.body.get("decision"))


def _clear_the_way(world: World) -> None:
    for gate in world.gates.values():
        gate.closed = False
        gate.forget()


def _expect_end(story: Story, transaction: dict[str, Any], phase: str) -> None:
    name = transaction["reference"]
    story.expect(f"end of {name}", (phase, phase), (transaction["phase"], transaction["outcome"]))
    story.expect(f"branches of {name}", [phase] * 3, [branch["phase"] for branch in transaction["branches"]])


def _told(answer: httpx.Response) -> tuple[int, str]:
    body = answer.json()
    return answer.status_code, str(body.get("status", body.get("detail")))


STORIES: Final[list[tuple[str, str, Callable[[World, Story], Awaitable[None]]]]] = [
    (
        "1. Booked",
        "An order takes goods, money and a van. First everybody holds (try); when all hold, that is decided and "
        "written down; then everybody makes it final (confirm).",
        booked,
    ),
    (
        "2. Refused",
        "Bob's card does not cover it. One refusal decides: whoever held, releases (cancel).",
        refused,
    ),
    (
        "3. Participant down",
        "Shipping is killed after its Try. The decision stands and is repeated to it until it acknowledges; "
        "meanwhile the transaction is listed as hung.",
        participant_down,
    ),
    (
        "4. Coordinator killed between the decision and the first Confirm",
        "The decision is durable before anyone is told, so the next process to start carries it out.",
        coordinator_killed,
    ),
    (
        "5. Initiator and coordinator vanish after the Try",
        "Two orders are in progress: order-6 is decided, order-5 is not. Holds have a time limit. When it has passed, "
        "each participant asks what was decided, and keeps or releases; what is past its deadline is cancelled.",
        left_alone,
    ),
    (
        "6. A saga is undone in reverse while a service is down",
        "The store can't hold: it makes the order and takes the goods at once. Bob can't pay, so both are "
        "compensated, the last one first, however long its service is away.",
        undone_in_reverse,
    ),
    (
        "7. The answer of the point of no return is lost",
        "Once the charge was sent, only the bank knows whether it happened, and decides. Past the deadline the "
        "bank is asked to make sure that it won't happen. It did, so the order stands.",
        answer_lost,
    ),
]
"""Title, lesson and play of each."""
