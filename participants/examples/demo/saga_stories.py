"""The stories of the store, which sells by sagas: what is undone, in which order, and what nobody can undo."""

from typing import Any, Final

from examples.demo.steps import found, hung, reached, tell
from examples.demo.story import Story
from examples.demo.world import World

PRICE_CENTS: Final = 25_00


async def undone_in_reverse(world: World, story: Story) -> None:
    before = await world.store()
    charging = world.bank_gate.hold_requests("action")
    begun = await _begin(world, story, "order-7", "bob")
    await reached(charging.reached, "the order and the goods are done, and the charge is on its way")
    world["depot"].kill()
    story.happened("the order is open and the goods are taken; the depot is killed (SIGKILL)")
    world.bank_gate.forget()
    charging.let_pass()
    listed = await found("the depot's compensation is listed as hung", lambda: hung(world, begun["id"]))
    why = {branch["name"]: branch["hung_reason"] for branch in listed["branches"]}
    story.expect("what hangs", "compensation_unanswered", why["take-goods"])
    story.expect("what only waits for its turn", None, why["create-order"])
    story.expect("the order, meanwhile", "open", (await world.store())["orders"][begun["id"]])
    story.happened("the order was made first, so it is undone last: it waits for the goods")
    await world.start("depot")
    story.happened("the depot is started again; nobody does anything else")
    transaction = await _end(world, story, begun["id"], "cancelled")
    reason = {"code": "refused", "branch": "charge", "detail": "insufficient funds"}
    story.expect("why", reason, transaction["reason"])
    after = await world.store()
    story.expect("the order", "cancelled", after["orders"][begun["id"]])
    story.expect("goods, as before", before["depot"], after["depot"])
    story.expect("money, as before", before["wallets"], after["wallets"])
    story.expect("letters", {}, after["letters"])
    calls = await tell(world, story, transaction)
    undone = [call["branch"] for call in calls if (call["operation"], call["answer"]) == ("compensation", "succeeded")]
    story.expect("undone in this order", ["take-goods", "create-order"], undone)


async def answer_lost(world: World, story: Story) -> None:
    before = await world.store()
    charged = world.bank_gate.hold_answers("action")
    begun = await _begin(world, story, "order-8", "ada", timeout_s=2)
    await reached(charged.reached, "the bank has charged")
    story.expect("ada has paid", PRICE_CENTS, (await world.store())["wallets"]["ada"]["paid"])
    story.happened("the bank has charged, and its answer is lost on the network, again and again")
    refused = await world.refused("POST", f"/v1/transactions/{begun['id']}/cancel")
    story.expect("what a request to cancel is told", (409, "/problems/pivot-sent"), refused)
    charged.cut()
    transaction = await _end(world, story, begun["id"], "confirmed")
    world.bank_gate.forget()
    calls = await tell(world, story, transaction)
    cancels = [call for call in calls if (call["branch"], call["operation"]) == ("charge", "cancel")]
    story.expect("past the deadline the bank is asked to make sure that it won't happen", True, bool(cancels))
    after = await world.store()
    story.expect("ada has paid once", PRICE_CENTS, after["wallets"]["ada"]["paid"] - before["wallets"]["ada"]["paid"])
    story.expect("goods that have left", 2, before["depot"]["A-1"] - after["depot"]["A-1"])
    story.expect("the letter", f"Your order is on its way ({PRICE_CENTS} cents)", after["letters"][begun["id"]])


async def _begin(world: World, story: Story, reference: str, customer: str, timeout_s: float = 30) -> Any:
    """Begin the saga; the answer comes as soon as it is recorded."""
    story.note("customer", "store", reference, f"2 of A-1 for {customer}, please")
    branches = [
        {"name": "create-order", "participant": "orders", "kind": "compensable", "payload": {"sku": "A-1"}},
        {
            "name": "take-goods",
            "participant": "depot",
            "kind": "compensable",
            "after": ["create-order"],
            "payload": {"sku": "A-1", "quantity": 2},
        },
        {
            "name": "charge",
            "participant": "bank",
            "kind": "pivot",
            "payload": {"customer": customer, "amount_cents": PRICE_CENTS},
        },
        {
            "name": "send-letter",
            "participant": "letters",
            "kind": "retryable",
            "after": ["charge"],
            "payload": {"text": "Your order is on its way"},
        },
    ]
    request = {"name": "sell", "reference": reference, "timeout_s": timeout_s, "undo": "reverse", "branches": branches}
    return await world.ask("POST", "/v1/transactions", json=request, headers={"Prefer": "respond-async"})


async def _end(world: World, story: Story, transaction_id: str, phase: str) -> Any:
    async def look() -> Any:
        transaction = await world.ask("GET", f"/v1/transactions/{transaction_id}", headers={"Prefer": "wait=5"})
        return transaction if transaction["finished_at"] else None

    transaction = await found(f"the end of {transaction_id}", look)
    story.expect("the end", (phase, phase), (transaction["phase"], transaction["outcome"]))
    return transaction
