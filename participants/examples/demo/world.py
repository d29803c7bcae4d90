"""The demo's world: coordinator, services and gateway as real processes, with gates on the network between them.

Every service is asked for its balances, the coordinator for its records, over HTTP as anybody would. Says how things
are wired; what happens is in stories.py.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, Final, Self

import httpx

from examples.demo.gate import Gate
from examples.demo.ledger import PARTICIPANTS, Ledger
from examples.keys import YOU, KeyFiles, rights
from examples.processes import Port, Process, Processes

DECISION_TIMEOUT_S: Final = 5.0
HOLD_MARGIN_S: Final = 1.0
SETTINGS: Final = {
    "hung_attempts": 2,
    "retry_base_s": 0.1,
    "retry_cap_s": 0.5,
    "hold_margin_s": HOLD_MARGIN_S,
    "shutdown_timeout_s": 1,
}


class World:
    """`gates` are on the way from the coordinator to each participant, `questions` on the way back."""

    def __init__(self, processes: Processes, folder: Path, ports: dict[str, int]) -> None:
        self.gates: Final = {name: Gate(ports[name]) for name in PARTICIPANTS}
        self.questions: Final = {name: Gate(ports["coordinator"]) for name in PARTICIPANTS}
        self.bank_gate: Final = Gate(ports["store"])
        self._processes = processes
        self._folder = folder
        self._ports = ports
        self._running: dict[str, Process] = {}
        self._keys = KeyFiles(folder / "keys")
        self._http = httpx.AsyncClient(timeout=30.0, trust_env=False)

    @classmethod
    @asynccontextmanager
    async def started(cls, folder: Path) -> AsyncIterator[Self]:
        """Everything started and healthy; everything stopped on the way out."""
        ports = {name: Port() for name in ("coordinator", "gateway", "order", "store", "depot", *PARTICIPANTS)}
        async with AsyncExitStack() as stack:
            for port in ports.values():
                stack.callback(port.release)
            processes = await stack.enter_async_context(Processes(folder / "logs"))
            world = cls(processes, folder, {name: port.number for name, port in ports.items()})
            stack.push_async_callback(world._http.aclose)
            for gate in (*world.gates.values(), *world.questions.values(), world.bank_gate):
                await gate.start()
                stack.push_async_callback(gate.stop)
            await world._start_all()
            yield world

    def __getitem__(self, name: str) -> Process:
        return self._running[name]

    async def start(self, *names: str) -> None:
        """Start processes that were killed, on the ports that they had."""
        await self._processes.start(*(self._running[name] for name in names))

    async def route(self, through_gates: Iterable[str] = ()) -> None:
        """Tell the coordinator where participants are: behind their gates, or, the others, directly."""
        gated = set(through_gates)
        urls = {name: (self.gates[name].url if name in gated else self[name].url) + "/tcc" for name in PARTICIPANTS}
        urls |= {"orders": f"{self['store'].url}/orders", "letters": f"{self['store'].url}/letters"}
        urls |= {"depot": f"{self['depot'].url}/depot", "bank": f"{self.bank_gate.url}/bank"}
        self["coordinator"].environment["HOLDFAST_PARTICIPANTS"] = json.dumps(urls)  # for its next start
        if self["coordinator"].running:
            for name, base_url in urls.items():
                await self.ask("PUT", f"/v1/participants/{name}", json={"base_url": base_url})

    async def ask(self, method: str, path: str, **request: Any) -> Any:
        """What the coordinator answers, as JSON. Raises httpx.HTTPError unless it is a success."""
        shown = {"Authorization": f"Bearer {self._keys.text(YOU)}"}
        request["headers"] = shown | request.get("headers", {})
        response = await self._http.request(method, self["coordinator"].url + path, **request)
        return response.raise_for_status().json()

    async def order(self, order: dict[str, Any]) -> httpx.Response:
        """Place an order."""
        return await self._http.post(f"{self['order'].url}/orders", json=order)

    async def find_order(self, order_id: str) -> Any:
        """What the order service says of an order."""
        return (await self._http.get(f"{self['order'].url}/orders/{order_id}")).raise_for_status().json()

    async def find_transaction(self, order_id: str) -> Any:
        """The one transaction that was begun for an order, or None."""
        items = (await self.ask("GET", "/v1/transactions", params={"reference": order_id}))["items"]
        assert len(items) <= 1, f"{len(items)} transactions for {order_id}"
        return items[0] if items else None

    async def balances(self) -> dict[str, Any]:
        """Each service's `GET /balances`, by name."""
        names = (*PARTICIPANTS, "gateway")
        answers = await asyncio.gather(*(self._http.get(f"{self[name].url}/balances") for name in names))
        return {name: answer.raise_for_status().json() for name, answer in zip(names, answers, strict=True)}

    async def refused(self, method: str, path: str) -> tuple[int, str]:
        """The status and the type of the coordinator's problem."""
        shown = {"Authorization": f"Bearer {self._keys.text(YOU)}"}
        response = await self._http.request(method, self["coordinator"].url + path, headers=shown)
        return response.status_code, response.json()["type"]

    async def store(self) -> dict[str, Any]:
        """What the store and its depot have: wallets, orders, letters, depot. A depot that is down has None."""
        found: dict[str, Any] = (await self._http.get(f"{self['store'].url}/balances")).raise_for_status().json()
        goods = await self._http.get(f"{self['depot'].url}/balances") if self["depot"].running else None
        return found | {"depot": goods and goods.json()}

    async def ledger(self) -> Ledger:
        return Ledger.of(await self.balances())

    async def _start_all(self) -> None:
        ports = self._ports
        for name in PARTICIPANTS:
            self._add(name, HOLDFAST_URL=self.questions[name].url, REAP_INTERVAL_S="0.2")
        self._add("gateway")
        for name in ("store", "depot"):
            self._add(name, HOLDFAST_URL=f"http://127.0.0.1:{ports['coordinator']}")
        coordinator_url = f"http://127.0.0.1:{ports['coordinator']}"
        self._add("order", HOLDFAST_URL=coordinator_url, DECISION_TIMEOUT_S=str(DECISION_TIMEOUT_S))
        self._running["payment"].environment["GATEWAY_URL"] = self["gateway"].url
        database_url = f"sqlite:///{self._folder / 'holdfast.db'}"
        self._running["coordinator"] = self._processes.coordinator(
            ports["coordinator"], database_url=database_url, participants={}, **SETTINGS, **self._keys.settings()
        )
        await self.route()
        await self.start("coordinator")
        await self._keys.create(self["coordinator"].url, rights(PARTICIPANTS))
        for name in ("order", *PARTICIPANTS):
            self[name].environment["HOLDFAST_API_KEY"] = self._keys.text(name)
        await self.start(*(name for name in self._running if name != "coordinator"))

    def _add(self, name: str, **environment: str) -> None:
        self._running[name] = self._processes.service(
            name, self._ports[name], DATA_DIR=str(self._folder), **environment
        )
