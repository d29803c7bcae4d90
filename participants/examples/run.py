"""python -m examples.run: the coordinator and the example services on fixed ports, until Ctrl-C.

Says where everything is and three curl commands to begin with. Data stays in `.run/`, so that what was begun goes on
when it is started again.
"""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import httpx

from examples.keys import YOU, KeyFiles, rights
from examples.processes import HOST, ROOT, Process, Processes, ProcessFailed, is_free, run_until_stopped, until

PORTS: Final = {
    "coordinator": 8000,
    "inventory": 8001,
    "payment": 8002,
    "shipping": 8003,
    "order": 8004,
    "gateway": 8005,
}
DATA: Final = ROOT / ".run"
PARTICIPANTS: Final = ("inventory", "payment", "shipping")
BEGIN: Final = """{
    "name": "place-order", "reference": "order-4711", "branches": [
      {"participant": "inventory", "payload": {"sku": "A-1", "quantity": 2}},
      {"participant": "payment", "payload": {"customer": "ada", "amount_cents": 5000}},
      {"participant": "shipping", "payload": {"day": "monday", "parcels": 2}}]}"""


async def serve(ports: Mapping[str, int], data: Path) -> int:
    """Start everything and wait; the exit status is 1 when something could not start or has ended by itself."""
    taken = [f"{port} ({name})" for name, port in ports.items() if not is_free(port)]
    if taken:
        print(f"Taken: port {', '.join(taken)}. Stop what listens there, and try again.", file=sys.stderr)
        return 1
    print("Starting ...", flush=True)
    keys = KeyFiles(data / "keys")
    try:
        async with Processes(data / "logs") as processes:
            coordinator, services = _all(processes, ports, data, keys)
            await processes.start(coordinator)
            await keys.create(coordinator.url, rights(PARTICIPANTS))
            for service in services:
                if keys.path(service.name).exists():
                    service.environment["HOLDFAST_API_KEY"] = keys.text(service.name)
            await processes.start(*services)
            print(welcome(ports, data), flush=True)
            return await _until_one_ends(processes)
    except ProcessFailed as error:
        print(error, file=sys.stderr)
        return 1
    except httpx.HTTPError as error:
        print(f"The keys in {data} don't fit its database ({error}). Remove {data}, and start again.", file=sys.stderr)
        return 1


def welcome(ports: Mapping[str, int], data: Path) -> str:
    """Where everything is, and what to try."""
    urls = {name: f"http://{HOST}:{port}" for name, port in ports.items()}
    pages = {"coordinator": "/docs", "order": "/docs"}
    where = "\n".join(f"  {name:<12} {url}{pages.get(name, '/balances')}" for name, url in urls.items())
    tries = "\n\n".join(curls(urls["coordinator"], data / "keys" / YOU))
    return f"{where}\n\nTry, in another terminal:\n\n{tries}\n\nData and logs are in {data}. Ctrl-C stops everything."


def curls(coordinator_url: str, key: Path) -> list[str]:
    """Begin a transaction; look at it; look at what hangs. `key` is the file that has the key."""
    transactions = f"{coordinator_url}/v1/transactions"
    shown = f'-H "Authorization: Bearer $(cat {key})"'
    return [
        f"curl -i {transactions} {shown} \\\n  -H 'Content-Type: application/json' -d '{BEGIN}'",
        f"curl {shown} '{transactions}?reference=order-4711'",
        f"curl {shown} {coordinator_url}/v1/admin/hung",
    ]


def _all(processes: Processes, ports: Mapping[str, int], data: Path, keys: KeyFiles) -> tuple[Process, list[Process]]:
    urls = {name: f"http://{HOST}:{port}" for name, port in ports.items()}
    coordinator = processes.coordinator(
        ports["coordinator"],
        database_url=f"sqlite:///{data / 'holdfast.db'}",
        participants={name: f"{urls[name]}/tcc" for name in PARTICIPANTS},
        **keys.settings(),
    )
    where = {"DATA_DIR": str(data), "HOLDFAST_URL": urls["coordinator"], "GATEWAY_URL": urls["gateway"]}
    services = [processes.service(name, ports[name], **where) for name in ports if name != "coordinator"]
    return coordinator, services


async def _until_one_ends(processes: Processes) -> int:
    async def ended() -> Process | None:
        return next((process for process in processes.all if not process.running), None)

    process = await until("a process ends", ended, within_s=float("inf"))
    print(f"{process.name} has ended; its log: {process.log}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(run_until_stopped(lambda: serve(PORTS, DATA), status_when_stopped=0))
