"""Real processes in doubt: coordinators and participants of this version and of the one before, and one of elsewhere.

A Confirm or Cancel that doesn't come is one whose endpoint nobody listens at.
"""

import asyncio
import os
import sys
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import httpx
import pytest

from examples.processes import Port, Processes
from tests.harness import old_code
from tests.harness.coordinator_process import CoordinatorProcess
from tests.harness.repository import ROOT

PROGRAM: Final = Path(__file__).with_name("participant_process.py")
BEFORE_COORDINATOR_IDS: Final = "tests/participant/test_inquiry.py"
LATE_S: Final = 1000.0
Json = dict[str, Any]


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The code of the version before."""
    folder = tmp_path_factory.mktemp("old") / "code"
    try:
        old_code.extract(folder, lacking=BEFORE_COORDINATOR_IDS)
    except old_code.NoHistoryError as error:
        pytest.skip(str(error))
    return folder


@pytest.fixture
def nobody() -> Iterator[str]:
    """Where nobody listens."""
    port = Port()
    yield f"http://127.0.0.1:{port.number}"
    port.release()


@asynccontextmanager
async def coordinator(database: Path, root: Path = ROOT) -> AsyncIterator[str]:
    settings = {"HOLDFAST_DATABASE_URL": f"sqlite:///{database}", "HOLDFAST_RETRY_CAP_S": "1"}
    process = CoordinatorProcess(settings, root=root)
    try:
        await asyncio.to_thread(process.start)
        yield process.url
    finally:
        await asyncio.to_thread(process.__exit__)


class Seats:
    """The participant's process, by its requests."""

    def __init__(self, url: str, log: Path) -> None:
        self.url = url
        self._log = log

    @property
    def log(self) -> str:
        return self._log.read_text()

    def endpoints(self, **others: str) -> Json:
        return {name: f"{self.url}/tcc/{name}" for name in ("try", "confirm", "cancel")} | others

    async def post(self, path: str, body: Json | None = None) -> httpx.Response:
        async with httpx.AsyncClient(base_url=self.url, timeout=30) as client:
            return await client.post(path, json=body)

    async def hold(self, transaction_id: str, branch: str) -> None:
        """A Try that no coordinator has recorded."""
        answer = await self.post("/tcc/try", {"transaction_id": transaction_id, "branch": branch})
        assert answer.status_code == 200, answer.text

    async def reap(self) -> None:
        answer = await self.post(f"/reap?after_s={LATE_S}")
        assert answer.status_code == 200, answer.text

    async def states(self) -> dict[str, str]:
        async with httpx.AsyncClient(base_url=self.url, timeout=30) as client:
            states: dict[str, str] = (await client.get("/states")).json()
            return states


@asynccontextmanager
async def participant(folder: Path, coordinator_url: str, root: Path = ROOT) -> AsyncIterator[Seats]:
    port = Port()
    environment = {
        "PYTHONPATH": os.pathsep.join((str(root / "participants"), str(root))),
        "PARTICIPANT_PORT": str(port.number),
        "PARTICIPANT_DATABASE_URL": f"sqlite:///{folder / 'seats.db'}",
        "PARTICIPANT_COORDINATOR_URL": coordinator_url,
    }
    try:
        async with Processes(folder) as processes:
            command = [sys.executable, str(PROGRAM)]
            process = processes.add("seats", command, port=port.number, health="/states", environment=environment)
            await processes.start(process)
            yield Seats(process.url, process.log)
    finally:
        port.release()


async def begin(url: str, *branches: Json) -> tuple[str, str]:
    """A transaction whose branches are tried in order; its id and decision."""
    named = [{"name": name, **rest} for name, rest in zip(("seats", "meal"), branches, strict=False)]
    body: Json = {"branches": named, "try_order": "sequential", "answer_at": "decision"}
    async with httpx.AsyncClient(timeout=60) as client:
        answer = (await client.post(f"{url}/v1/transactions", json=body)).json()
    transaction = answer.get("transaction", answer)
    return transaction["id"], transaction["decision"]


@pytest.mark.parametrize("participant_is", ["new", "old"])
@pytest.mark.parametrize("coordinator_is", ["new", "old"])
async def test_every_version_settles_the_holds_of_every_other(
    tmp_path: Path, old: Path, nobody: str, coordinator_is: str, participant_is: str
) -> None:
    roots = {"new": ROOT, "old": old}
    async with (
        coordinator(tmp_path / "coordinator.db", roots[coordinator_is]) as url,
        participant(tmp_path, url, roots[participant_is]) as seats,
    ):
        confirmed, decision = await begin(url, {"endpoints": seats.endpoints(confirm=nobody)})
        assert decision == "confirm"
        refuses = dict.fromkeys(("try", "confirm", "cancel"), f"{seats.url}/not-found")
        cancelled, decision = await begin(url, {"endpoints": seats.endpoints(cancel=nobody)}, {"endpoints": refuses})
        assert decision == "cancel"
        unknown = str(uuid.uuid4())
        await seats.hold(unknown, "seats")
        await seats.hold(confirmed, "stray")
        assert set((await seats.states()).values()) == {"held"}
        await seats.reap()
        stray = "cancelled" if (coordinator_is, participant_is) == ("new", "new") else "held"
        assert await seats.states() == {
            f"{confirmed} seats": "held",
            f"{cancelled} seats": "cancelled",
            f"{unknown} seats": "cancelled",
            f"{confirmed} stray": stray,
        }
        late = await seats.post("/tcc/confirm", {"transaction_id": confirmed, "branch": "seats"})
        assert (late.status_code, late.json()) == (200, {"phase": "confirmed"})


async def test_the_coordinator_of_another_system_undoes_nothing(tmp_path: Path, nobody: str) -> None:
    """`coordinator_url` is that of staging, by mistake: nothing shows it until a Confirm is late."""
    async with (
        coordinator(tmp_path / "production.db") as production,
        coordinator(tmp_path / "staging.db") as staging,
        participant(tmp_path, staging) as seats,
    ):
        confirmed, decision = await begin(production, {"endpoints": seats.endpoints(confirm=nobody)})
        assert decision == "confirm"
        await seats.reap()
        assert await seats.states() == {f"{confirmed} seats": "held"}
        assert "event=coordinator_unreachable" in seats.log
        assert "check coordinator_url" in seats.log
        late = await seats.post("/tcc/confirm", {"transaction_id": confirmed, "branch": "seats"})
        assert late.status_code == 200
