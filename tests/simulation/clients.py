"""Who begins transactions, waits, asks, cancels and repeats; and writes down what they were told."""

import asyncio
import json
from typing import Any, Final

import httpx

from app.api.bodies import read_begin
from app.api.schemas import BeginRequest
from app.protocol.kinds import OPERATIONS
from holdfast.wire import Kind
from tests.harness.notes import note_of, slug_of, transaction_in
from tests.simulation.databases import ACCOUNTS
from tests.simulation.faults import Branch, Fault
from tests.simulation.scheduler import pass_time

REQUEST_TIMEOUT_S: Final = 1.5
ATTEMPTS_MAX: Final = 60
NO_ANSWER: Final = (0, 500, 502, 503, 504)
TIMEOUTS_S: Final = (0.25, 0.6, 2.0, 4.0)


class Clients:
    """All clients are one process, which never fails: what they know is the evidence."""

    def __init__(self, world: Any) -> None:
        self._world = world
        self._draw = world.draw
        self.left = 0
        self.known: list[str] = []

    async def transfer(self, number: int, after_s: float) -> None:
        """One transaction, until the client knows its end or loses interest."""
        self.left += 1
        await pass_time(after_s)
        key = f"k{number}"
        body = self._body(key)
        self._count_kinds(body)
        copies = 2 if self._world.plan.hits(Fault.CLIENT_REPEATS) else 1
        tasks = [asyncio.create_task(self._follow(key, body)) for _ in range(copies)]
        await asyncio.gather(*tasks)
        self.left -= 1

    async def _follow(self, key: str, body: BeginRequest) -> None:
        draw, plan = self._draw, self._world.plan
        transaction = await self._begin(key, body)
        if transaction is None:
            return
        if plan.hits(Fault.CLIENT_CANCELS):
            await self._ask("cancel", transaction["id"], key)
        if plan.hits(Fault.CANCELLED_EVERYWHERE):
            replicas = range(len(self._world.replicas))
            await asyncio.gather(*(self._ask("cancel", transaction["id"], key, replica=each) for each in replicas))
        if plan.hits(Fault.CLIENT_MISUSES_KEY):
            await self._misuse(key)
        for _ in range(ATTEMPTS_MAX):
            if transaction["outcome"] is not None or draw.random() < 0.1:
                break
            status, document = await self._ask("get", transaction["id"], key)
            if status == 200:
                transaction = document
            else:
                await pass_time(draw.uniform(0.02, 0.3))
        if draw.random() < 0.2:
            await self._ask("decision", draw.choice(self.known))
        if draw.random() < 0.05:
            await self._begin(key, body)

    async def _misuse(self, key: str) -> None:
        """Another request under a key that is in use; nothing may come of it."""
        status, document = await self._request("begin", self._body(key + "-other"), ["respond-async"], key)
        if (status, slug_of(document)) == (409, "idempotency-key-conflict"):
            self._world.plan.count(Branch.KEY_CONFLICT)
        elif status not in NO_ANSWER:
            self._world.oracle.violated("key_conflict", None, f"another request under {key} was answered {status}")

    async def _begin(self, key: str, body: BeginRequest) -> Any:
        """As a careful client does it: again under the same key, anywhere, until there is an answer."""
        prefer = [self._draw.choice(["wait=1", "wait=1", "wait=0", "respond-async"])]
        for _ in range(ATTEMPTS_MAX):
            sent_at = self._world.loop.now
            status, document = await self._request("begin", body, prefer, key)
            transaction = transaction_in(document)
            self._note("begin", sent_at, status, document, key)
            if transaction is not None:
                if transaction["id"] not in self.known:
                    self.known.append(transaction["id"])
                return transaction
            if status not in NO_ANSWER:
                return None
            await pass_time(self._draw.uniform(0.02, 0.4))
        return None

    async def _ask(
        self, kind: str, transaction_id: str, key: str | None = None, *, replica: int | None = None
    ) -> tuple[int, Any]:
        sent_at = self._world.loop.now
        rest = (["wait=1"],) if kind == "get" else ()
        status, document = await self._request(kind, transaction_id, *rest, number=replica)
        self._note(kind, sent_at, status, document, key, transaction_id)
        return status, document

    async def _request(self, *request: Any, number: int | None = None) -> tuple[int, Any]:
        """Send it to this replica, or to any."""
        world = self._world
        self._last_replica = self._draw.randrange(len(world.replicas)) if number is None else number
        replica = f"replica-{self._last_replica}"
        topic = request[-1] if request[0] == "begin" else request[1]
        label = f"{request[0]} {topic if request[0] == 'begin' else world.short(topic)}"
        try:
            async with asyncio.timeout(REQUEST_TIMEOUT_S):
                status, document = await world.network.exchange("clients", replica, request, (request[0], topic), label)
        except (TimeoutError, httpx.HTTPError):
            status, document = 0, {}
        world.tell("answer", replica, "clients", f"{label}: {status} {slug_of(document) or ''}")
        return status, document

    def _note(
        self, kind: str, sent_at: float, status: int, document: Any, key: str | None, transaction_id: str | None = None
    ) -> None:
        note = note_of(
            kind,
            document,
            replica=self._last_replica,
            sent_at=sent_at,
            seen_at=self._world.loop.now,
            status=status,
            key=key,
            transaction_id=transaction_id,
        )
        self._world.notes.append(note)

    def _count_kinds(self, body: BeginRequest) -> None:
        """What the coordinator takes the request for, not what was meant: a kind that never arrives isn't met."""
        begin = body.begin(self._world.replicas[0].settings, idempotency_key=None, traceparent=None, owner=None)
        for branch in begin.branches:
            self._world.plan.count(branch.kind)

    def _body(self, key: str) -> BeginRequest:
        """Money moves from one service to one or two others; some ask for more than there is."""
        draw, names = self._draw, self._world.participant_names
        amount = 10_000_000 if draw.random() < 0.04 else draw.randint(2, 60)
        places = draw.sample(names, 3 if len(names) > 2 and draw.random() < 0.3 else 2)
        shares = [amount] if len(places) == 2 else [amount // 2, amount - amount // 2]
        movements = [("debit", places[0], amount)]
        movements += [("credit", place, share) for place, share in zip(places[1:], shares, strict=True)]
        branches: list[dict[str, Any]] = []
        for number, (movement, place, share) in enumerate(movements):
            payload = {"kind": movement, "account": draw.randrange(ACCOUNTS), "amount": share}
            branch = {"name": f"{movement}-{number}", "payload": payload}
            if draw.random() < 0.15:
                branch["endpoints"] = {name: f"http://{place}/{name}" for name in sorted(OPERATIONS[Kind.TCC])}
            else:
                branch["participant"] = place
            branches.append(branch)
        asked = {
            "name": "transfer",
            "reference": key,
            "timeout_s": draw.choice(TIMEOUTS_S),
            "try_order": draw.choice(["parallel", "parallel", "sequential"]),
            "answer_at": draw.choice(["end", "end", "decision", "record"]),
            "branches": branches,
        }
        return read_begin(json.dumps(asked).encode(), "application/json")
