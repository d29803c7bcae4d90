"""What a client of Holdfast's API does: one POST whose answer is the outcome. The textbook coordinator has the same."""

import json

from tests.benchmark.http_client import Connections, Unexpected

DEAD_TIMEOUT_S = 1.0
"""The time to a decision of the transactions that have a branch at a dead participant."""

_PAYLOADS = {"a": {"sku": "A-1", "quantity": 2}, "b": {"customer": "ada", "amount_cents": 5000}}


def body(reference: str, *participants: str, timeout_s: float = 30) -> bytes:
    """A transaction with one branch at each of these participants."""
    branches = [{"participant": each, "payload": _PAYLOADS.get(each, {})} for each in participants]
    begin = {"name": "bench", "reference": reference, "timeout_s": timeout_s, "branches": branches}
    return json.dumps(begin).encode()


async def transact(connections: Connections, url: str, participant_url: str, reference: str) -> None:
    """One two-branch transaction, confirmed, or Unexpected."""
    await begin_and_confirm(connections, url, body(reference, "a", "b"))


async def begin_and_confirm(connections: Connections, url: str, begin: bytes) -> None:
    """Post this body; Unexpected unless the answer says confirmed."""
    status, answer = await connections.post(f"{url}/v1/transactions", begin)
    if status != 201 or b'"outcome":"confirmed"' not in answer:
        raise Unexpected(f"{status} {answer[:300]!r}")


async def transact_with_dead(connections: Connections, url: str) -> None:
    """One whose second participant does not answer: cancelled, or to be cancelled for certain, or Unexpected."""
    status, answer = await connections.post(
        f"{url}/v1/transactions", body("dead", "a", "dead", timeout_s=DEAD_TIMEOUT_S)
    )
    is_cancelled = status == 409 and b"/problems/transaction-cancelled" in answer
    will_be = status == 202 and b'"decision":"cancel"' in answer  # the dead one's Cancel has failed once
    if not (is_cancelled or will_be):
        raise Unexpected(f"{status} {answer[:300]!r}")
