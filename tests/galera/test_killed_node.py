"""A coordinator at each of three Galera nodes, all of them busy, and one node is killed: what clients were told holds.

What happened is read from the participants' own notes, and from what clients were answered; not from one node alone.
"""

import asyncio
import itertools
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any, Final

import httpx
import pytest
import pytest_asyncio

from app.storage import queries
from tests.harness.coordinator_app import Reaction, Received, Service, running, until
from tests.harness.galera import GaleraCluster

TRANSACTIONS: Final = 150
CLIENTS: Final = 12
KILL_AFTER: Final = 40
LEASE_S: Final = 2.0
NAMES: Final = ("left", "right")


@dataclass
class Ledger:
    """What two participants did, each with a fence of its own; the right one refuses every fifth order."""

    fences: dict[tuple[str, str], str] = field(default_factory=dict)
    violations: list[str] = field(default_factory=list)

    def reaction(self, name: str, operation: str) -> Reaction:
        async def react(received: Received) -> httpx.Response:
            return httpx.Response(self.act(name, operation, received.body), json={})

        return react

    def act(self, name: str, operation: str, message: dict[str, Any]) -> int:
        key = (message["transaction_id"], name)
        state = self.fences.get(key)
        match operation, state:
            case "try", "cancelled":
                return 409
            case "try", None:
                if name == "right" and message["payload"] % 5 == 0:
                    return 409
                self.fences[key] = "held"
            case ("confirm", "cancelled") | ("confirm", None) | ("cancel", "confirmed"):
                self.violations.append(f"{operation} of {key}, which is {state}")
                return 409
            case "confirm" | "cancel", _:
                self.fences[key] = "confirmed" if operation == "confirm" else "cancelled"
        return 200

    def ends(self) -> dict[str, set[str]]:
        """How each transaction ended at its participants."""
        ends = defaultdict(set)
        for (transaction_id, _), state in self.fences.items():
            ends[transaction_id].add(state)
        return ends


@pytest.fixture
def ledger() -> Ledger:
    return Ledger()


@pytest_asyncio.fixture
async def coordinators(urls: list[str], ledger: Ledger) -> AsyncIterator[list[Service]]:
    """One at each node, with participants that write down what they do."""
    async with AsyncExitStack() as stack:
        made = [await stack.enter_async_context(running(url, lease_s=LEASE_S)) for url in urls]
        for service in made:
            await service.register(*NAMES)
            await service.parts.registry.refresh()
            for name, operation in itertools.product(NAMES, ("try", "confirm", "cancel")):
                service.participants.script(f"/{name}/{operation}", [ledger.reaction(name, operation)])
        yield made


class Load:
    """Clients that begin orders, each at any coordinator, and go to the next one with the same key when it fails."""

    def __init__(self, coordinators: list[Service]) -> None:
        self._coordinators = coordinators
        self._numbers = itertools.count()
        self.answers: dict[int, httpx.Response] = {}
        self.failed_over = 0
        self.warm = asyncio.Event()

    async def run(self) -> None:
        await asyncio.gather(*(self._client() for _ in range(CLIENTS)))

    async def _client(self) -> None:
        while (number := next(self._numbers)) < TRANSACTIONS:
            self.answers[number] = await self._order(number)
            if len(self.answers) >= KILL_AFTER:
                self.warm.set()

    async def _order(self, number: int) -> httpx.Response:
        request = {"branches": [{"participant": name, "payload": number} for name in NAMES], "timeout_s": 20}
        for coordinator in itertools.islice(itertools.cycle(self._coordinators), number, number + 50):
            answer = await coordinator.begin(request, idempotency_key=f'"order-{number}"', prefer="wait=20")
            if answer.status_code != 503:
                return answer
            self.failed_over += 1
        raise AssertionError(f"nobody took order {number}")


def transaction_in(answer: httpx.Response) -> dict[str, Any]:
    body: dict[str, Any] = answer.json()
    return body["transaction"] if answer.status_code == 409 else body


async def test_nothing_acknowledged_is_lost_when_a_node_is_killed(
    coordinators: list[Service], ledger: Ledger, cluster: GaleraCluster
) -> None:
    load = Load(coordinators)
    running_load = asyncio.create_task(load.run())
    await load.warm.wait()
    cluster.nodes[0].crash()
    await running_load
    assert load.failed_over, "somebody was at the node that was killed"

    survivors = coordinators[1:]
    ids = {transaction_in(answer)["id"] for answer in load.answers.values()}
    assert len(ids) == TRANSACTIONS, "each order is one transaction, however often it was sent"
    for transaction_id in ids:
        await survivors[0].until_finished(transaction_id)

    async def all_finished() -> bool:
        return await survivors[1].parts.journal.read(queries.count_unfinished) == 0

    await until(all_finished)
    assert not ledger.violations
    for number, answer in load.answers.items():
        told = transaction_in(answer)
        ends = ledger.ends()[told["id"]]
        confirmed = number % 5 != 0
        found = [await service.get(told["id"]) for service in survivors]
        assert found[0] == found[1]
        if answer.status_code in {201, 409}:
            assert found[0]["phase"] == told["phase"], "what a client was told does not change"
        assert ends == {found[0]["phase"]}, f"order {number}: {answer.text}"
        assert (found[0]["phase"] == "confirmed") <= confirmed
    assert set(ledger.ends()) == ids, "nothing was carried out that nobody ordered"


async def test_a_coordinator_works_again_when_its_node_has_come_back(
    coordinators: list[Service], cluster: GaleraCluster
) -> None:
    order = {"branches": [{"participant": name, "payload": 1} for name in NAMES]}
    cluster.nodes[2].crash()
    assert (await coordinators[2].client.get("/readyz")).status_code == 503
    assert (await coordinators[2].begin(order)).status_code == 503
    begun = await coordinators[1].begin(order)
    assert begun.status_code == 201
    cluster.rejoin(2)
    assert (await coordinators[2].get(begun.json()["id"]))["phase"] == "confirmed"
    assert (await coordinators[2].begin(order)).status_code == 201
