"""Real processes: `python -m app serve` and `migrate`, killed and terminated, on real sockets."""

import asyncio
import json
import os
import re
import resource
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import httpx
import pytest

from app.storage.migrations import migrate
from tests.harness.coordinator_process import CoordinatorProcess
from tests.harness.database_server import DatabaseServer
from tests.harness.databases import on_servers
from tests.harness.fault_server import FaultServer, Peer, Reply
from tests.harness.repository import ROOT

WAIT_TIMEOUT_S: Final = 40.0
INDEX_BYTES: Final = 32_768
"""The size of the index of SQLite's log."""
Json = dict[str, Any]


@dataclass(slots=True)
class Gate:
    """Answers once it is opened: what the coordinator does is observed while its request waits here."""

    then: Reply = field(default_factory=lambda: Reply(200, {"hold_id": "h-1"}))
    opened: asyncio.Event = field(default_factory=asyncio.Event)

    async def play(self, peer: Peer) -> bool:
        waiting = asyncio.create_task(self.opened.wait())
        leaving = asyncio.create_task(peer.left_within(None))
        await asyncio.wait([waiting, leaving], return_when=asyncio.FIRST_COMPLETED)
        for task in (waiting, leaving):
            task.cancel()
        return await self.then.play(peer) if self.opened.is_set() else False


@pytest.fixture
async def participants() -> AsyncIterator[FaultServer]:
    """inventory and payment, which do whatever they are asked."""
    async with FaultServer() as server:
        for name in ("inventory", "payment"):
            for operation in ("try", "confirm", "cancel"):
                server.script(f"/{name}/{operation}", [Reply(200, {"hold_id": name})])
        yield server


@pytest.fixture
def settings(tmp_path: Path, participants: FaultServer) -> dict[str, str]:
    registry: Json = {
        "inventory": participants.url("/inventory"),
        "payment": {"base_url": participants.url("/payment/"), "call_timeout_s": 20, "concurrency_max": 3},
    }
    return {
        "HOLDFAST_DATABASE_URL": f"sqlite:///{tmp_path / 'holdfast.db'}",
        "HOLDFAST_PARTICIPANTS": json.dumps(registry),
        "HOLDFAST_CALL_TIMEOUT_S": "20",
        "HOLDFAST_RETRY_BASE_S": "0.01",
        "HOLDFAST_RETRY_CAP_S": "0.05",
        "HOLDFAST_SHUTDOWN_TIMEOUT_S": "1",
        "HOLDFAST_LEASE_S": "3600",  # whoever restarts on its own database must not wait for a dead process
    }


ORDER: Final[Json] = {"branches": [{"participant": "inventory"}, {"participant": "payment"}], "timeout_s": 60}


async def begin(url: str, **changes: Any) -> httpx.Response:
    async with httpx.AsyncClient(timeout=WAIT_TIMEOUT_S) as client:
        return await client.post(f"{url}/v1/transactions", json=ORDER | changes, headers={"Idempotency-Key": "k"})


async def get(url: str, path: str, **headers: str) -> Json:
    async with httpx.AsyncClient(timeout=WAIT_TIMEOUT_S) as client:
        answer = await client.get(f"{url}{path}", headers=headers)
        assert answer.status_code == 200, answer.text
        body: Json = answer.json()
        return body


async def finished(url: str, transaction_id: str) -> Json:
    return await get(url, f"/v1/transactions/{transaction_id}", Prefer=f"wait={WAIT_TIMEOUT_S - 5:g}")


async def started(settings: dict[str, str]) -> CoordinatorProcess:
    process = CoordinatorProcess(settings)
    await asyncio.to_thread(process.start)
    return process


@pytest.fixture
async def coordinator(settings: dict[str, str]) -> AsyncIterator[CoordinatorProcess]:
    process = CoordinatorProcess(settings)
    try:
        await asyncio.to_thread(process.start)
        yield process
    finally:
        await asyncio.to_thread(process.__exit__)


@pytest.mark.parametrize(
    ("held_at", "refusing", "outcome", "answer_at"),
    [
        ("/payment/try", False, "confirmed", "record"),
        ("/payment/confirm", False, "confirmed", "decision"),
        ("/inventory/cancel", True, "cancelled", "decision"),
    ],
)
async def test_killed_at_any_moment_and_finished_by_the_next_start(
    coordinator: CoordinatorProcess,
    participants: FaultServer,
    held_at: str,
    outcome: str,
    answer_at: str,
    *,
    refusing: bool,
) -> None:
    gate = Gate()
    if refusing:
        participants.script("/payment/try", [Reply(409, {"detail": "insufficient funds"})])
    participants.script(held_at, [gate, Reply(200, {"hold_id": "again"})])
    begun = (await begin(coordinator.url, answer_at=answer_at)).json()
    transaction = begun.get("transaction", begun)
    await participants.wait_for_requests(1, held_at)
    await asyncio.to_thread(coordinator.kill)
    assert not gate.opened.is_set()
    await asyncio.to_thread(coordinator.start)
    after = await finished(coordinator.url, transaction["id"])
    assert (after["outcome"], after["id"]) == (outcome, transaction["id"])
    repeated = participants.received(held_at)
    assert len(repeated) == 2
    assert len({request.headers["idempotency-key"] for request in repeated}) == 1
    paths = {request.path for request in participants.requests}
    unwanted = "cancel" if outcome == "confirmed" else "confirm"
    assert not any(path.endswith(unwanted) for path in paths)
    calls = await get(coordinator.url, f"/v1/transactions/{transaction['id']}/calls")
    assert calls["items"][-1]["answer"] == "succeeded"


async def test_killed_while_clients_wait_and_the_key_finds_the_transaction(
    coordinator: CoordinatorProcess, participants: FaultServer
) -> None:
    participants.script("/inventory/try", [Gate(), Reply(200, {})])
    waiting = asyncio.create_task(begin(coordinator.url))
    await participants.wait_for_requests(1, "/inventory/try")
    await asyncio.to_thread(coordinator.kill)
    with pytest.raises(httpx.TransportError):
        await waiting
    await asyncio.to_thread(coordinator.start)
    again = await begin(coordinator.url)
    assert again.status_code == 201
    listed = await get(coordinator.url, "/v1/transactions")
    assert [each["id"] for each in listed["items"]] == [again.json()["id"]]
    assert len(participants.received("/inventory/confirm")) == 1


async def test_sigterm_answers_who_waits_exits_0_and_the_restart_completes_the_rest(
    coordinator: CoordinatorProcess, participants: FaultServer
) -> None:
    soon, never = Gate(), Gate()
    participants.script("/inventory/try", [soon, Reply(200, {})])
    participants.script("/payment/confirm", [never, Reply(200, {})])
    ends = asyncio.create_task(begin(coordinator.url))
    await participants.wait_for_requests(1, "/inventory/try")
    coordinator.terminate()
    await until(lambda: refused(coordinator.url))
    soon.opened.set()
    answer = await ends
    assert answer.status_code == 202, "what was accepted is answered"
    assert answer.json()["decision"] == "confirm"
    assert await asyncio.to_thread(coordinator.wait_end) == 0, coordinator.log
    assert "Traceback" not in coordinator.log
    await asyncio.to_thread(coordinator.start)
    assert (await finished(coordinator.url, answer.json()["id"]))["outcome"] == "confirmed"


async def test_sigterm_lets_what_can_end_end(coordinator: CoordinatorProcess, participants: FaultServer) -> None:
    gate = Gate()
    participants.script("/inventory/try", [gate])
    ends = asyncio.create_task(begin(coordinator.url))
    await participants.wait_for_requests(1, "/inventory/try")
    coordinator.terminate()
    await until(lambda: refused(coordinator.url))
    gate.opened.set()
    assert (await ends).status_code == 201
    assert await asyncio.to_thread(coordinator.wait_end) == 0, coordinator.log


async def test_sigterm_without_anything_under_way_exits_0_at_once(coordinator: CoordinatorProcess) -> None:
    assert (await get(coordinator.url, "/readyz")) == {"status": "ready"}
    coordinator.terminate()
    assert await asyncio.to_thread(coordinator.wait_end) == 0, coordinator.log


@pytest.mark.parametrize(("age_max_s", "is_shared"), [("60", True), ("0.000001", False)])
async def test_connections_to_participants_have_a_maximum_age(
    settings: dict[str, str], participants: FaultServer, age_max_s: str, *, is_shared: bool
) -> None:
    process = await started(settings | {"HOLDFAST_CONNECTION_AGE_MAX_S": age_max_s})
    try:
        assert (await begin(process.url, branches=[{"participant": "inventory"}])).status_code == 201
        first, second = (request.connection for request in participants.requests)
        assert (first == second) is is_shared
    finally:
        await asyncio.to_thread(process.__exit__)


HANGING_NAMES: Final = """
import socket
real = socket.getaddrinfo
def getaddrinfo(host, *args, **how):
    if str(host).startswith("hangs"):
        name_server = socket.create_connection(("127.0.0.1", %d))
        name_server.sendall(b"POST /name-server HTTP/1.1\\r\\nHost: a\\r\\nContent-Length: 0\\r\\n\\r\\n")
        name_server.recv(1)  # it never answers
    return real(host, *args, **how)
socket.getaddrinfo = getaddrinfo
"""


async def test_look_ups_that_hang_delay_neither_other_names_nor_sigterm(
    settings: dict[str, str], participants: FaultServer, tmp_path: Path
) -> None:
    participants.script("/name-server", [Gate()])
    (tmp_path / "sitecustomize.py").write_text(HANGING_NAMES % httpx.URL(participants.url()).port)
    hanging = {f"hangs{n}": f"http://hangs{n}.test:1/" for n in range(40)}
    local = {"local": participants.url("/inventory").replace("127.0.0.1", "localhost")}
    process = await started(
        settings
        | {
            "PYTHONPATH": os.pathsep.join((str(tmp_path), str(ROOT), str(ROOT / "participants"))),
            "HOLDFAST_PARTICIPANTS": json.dumps(hanging | local),
            "HOLDFAST_ALLOWED_ENDPOINTS": "http://*:*,http://localhost:*",
        }
    )
    try:
        async with httpx.AsyncClient(timeout=WAIT_TIMEOUT_S) as client:
            for name in hanging:
                transaction = {"branches": [{"participant": name}], "answer_at": "record"}
                answer = await client.post(f"{process.url}/v1/transactions", json=transaction)
                assert answer.status_code == 202
            await participants.wait_for_requests(len(hanging), "/name-server")
            answer = await client.post(f"{process.url}/v1/transactions", json={"branches": [{"participant": "local"}]})
            assert answer.status_code == 201, answer.text
        process.terminate()
        assert await asyncio.to_thread(process.wait_end) == 0, process.log
        assert "Traceback" not in process.log
        assert "never retrieved" not in process.log
    finally:
        await asyncio.to_thread(process.__exit__)


async def refused(url: str) -> bool:
    try:
        _, writer = await asyncio.open_connection(httpx.URL(url).host, httpx.URL(url).port)
    except ConnectionError:
        return True
    writer.close()
    await writer.wait_closed()
    return False


async def until(holds: Callable[[], Awaitable[object]]) -> None:
    async with asyncio.timeout(WAIT_TIMEOUT_S):
        while not await holds():  # noqa: ASYNC110 - another process has no event for us
            await asyncio.sleep(0)


async def test_what_users_see_first(
    coordinator: CoordinatorProcess, participants: FaultServer, settings: dict[str, str]
) -> None:
    assert coordinator.url.startswith("http://127.0.0.1:")
    assert not coordinator.url.endswith(":0"), "port 0 takes a free port and says which"
    assert "event=exposed" not in coordinator.log
    listed = await get(coordinator.url, "/v1/participants")
    assert listed["items"] == [
        {
            "name": "inventory",
            "base_url": participants.url("/inventory"),
            "call_timeout_s": None,
            "concurrency_max": 64,
        },
        {"name": "payment", **json.loads(settings["HOLDFAST_PARTICIPANTS"])["payment"]},
    ]
    assert (await begin(coordinator.url)).status_code == 201
    assert {request.path for request in participants.requests} == (
        {"/inventory/try", "/payment/try", "/inventory/confirm", "/payment/confirm"}
    )
    async with httpx.AsyncClient() as client:
        answer = await client.post(f"{coordinator.url}/v1/transactions", content=b" " * 1_048_577)
        assert (answer.status_code, answer.json()["type"]) == (413, "/problems/payload-too-large")
        page = await client.get(f"{coordinator.url}{answer.json()['type']}")
        assert page.status_code == 200
        assert (await client.get(f"{coordinator.url}/openapi.json")).status_code == 200


async def test_a_head_that_is_too_large_is_refused(coordinator: CoordinatorProcess) -> None:
    answer = await asyncio.to_thread(httpx.get, coordinator.url, headers={"X-Long": "v" * 40_000})
    assert (answer.status_code, answer.json()["type"]) == (431, "/problems/head-too-large")


EXPOSED: Final[dict[str, str]] = {
    "HOLDFAST_HOST": "0.0.0.0",
    "HOLDFAST_AUTH": "none",
    "HOLDFAST_ALLOWED_ENDPOINTS": "http://127.0.0.1:*",  # by default nothing may be called
}


async def test_another_host_than_loopback_is_warned_of_once(settings: dict[str, str]) -> None:
    process = await started(settings | EXPOSED)
    process.terminate()
    await asyncio.to_thread(process.wait_end)
    warnings = [line for line in process.lines if "WARNING" in line]
    assert len(warnings) == 1
    assert "event=exposed host=0.0.0.0" in warnings[0]
    assert "HOLDFAST_AUTH is none" in warnings[0]


async def test_a_process_logs_json_from_its_first_line_on(settings: dict[str, str]) -> None:
    """Those of uvicorn, too."""
    process = await started(settings | EXPOSED | {"HOLDFAST_LOG_FORMAT": "json"})
    process.terminate()
    await asyncio.to_thread(process.wait_end)
    lines = [json.loads(line) for line in process.lines]
    assert {"time", "level", "logger"} <= set.intersection(*(set(line) for line in lines))
    (exposed,) = [line for line in lines if line.get("event") == "exposed"]
    assert (exposed["level"], exposed["host"]) == ("WARNING", "0.0.0.0")
    assert any(line.get("event") == "serving" and "http://" in line["message"] for line in lines)
    assert any(line["logger"].startswith("uvicorn") for line in lines)


async def test_a_copy_of_a_database_does_not_run_under_another_url(settings: dict[str, str]) -> None:
    """A copy of production that is started as staging would confirm for real."""
    production = settings | {"HOLDFAST_PUBLIC_URL": "https://holdfast.example.com"}
    staging = settings | {"HOLDFAST_PUBLIC_URL": "https://staging.example.com"}
    for same in (production, production, settings):
        process = await started(same)
        process.terminate()
        await asyncio.to_thread(process.wait_end)
    assert "this database serves https://holdfast.example.com" in failed(staging)
    assert "serve --adopt" in failed(staging)
    process = CoordinatorProcess(staging, command="serve --adopt")
    await asyncio.to_thread(process.start)
    process.terminate()
    await asyncio.to_thread(process.wait_end)
    assert "this database serves https://staging.example.com" in failed(production)


def failed(settings: dict[str, str], command: str = "serve") -> str:
    """What `python -m app` says when it must not start; it says it in one line, without a traceback."""
    process = CoordinatorProcess(settings, command=command)
    process.launch()
    assert process.wait_end() == 1, process.log
    said = [line for line in process.lines if line.startswith("holdfast: ")]
    assert len(said) == 1, process.log
    assert "Traceback" not in process.log
    return said[0]


async def test_a_web_page_of_another_name_can_do_nothing(coordinator: CoordinatorProcess) -> None:
    """DNS rebinding: its name resolves to this machine, and its browser says so."""
    async with httpx.AsyncClient(base_url=coordinator.url, headers={"Host": "rebound.example"}) as page:
        answer = await page.put("/v1/participants/evil", json={"base_url": "http://127.0.0.1:9"})
        assert (answer.status_code, answer.json()["type"]) == (421, "/problems/untrusted-host")
        assert (await page.get("/healthz")).status_code == 200
    assert "evil" not in [each["name"] for each in (await get(coordinator.url, "/v1/participants"))["items"]]


@pytest.mark.parametrize(
    ("proxies", "said", "recorded"),
    [
        ("", "the CFO (approved)", "127.0.0.1"),
        ("", "203.0.113.7", "127.0.0.1"),
        ("127.0.0.1", "the CFO (approved)", "127.0.0.1"),
        ("127.0.0.1", "the CFO, 203.0.113.7", "203.0.113.7"),
    ],
)
async def test_who_resolves_is_an_address_and_of_a_trusted_proxy_s_word(
    settings: dict[str, str], participants: FaultServer, proxies: str, said: str, recorded: str
) -> None:
    participants.script("/payment/confirm", [Reply(410)])
    coordinator = await started(settings | {"HOLDFAST_TRUSTED_PROXIES": proxies})
    try:
        begun = (await begin(coordinator.url)).json()
        path = f"/v1/transactions/{begun['id']}"

        async def hangs() -> object:
            return (await get(coordinator.url, path))["hung"]

        await until(hangs)
        async with httpx.AsyncClient(base_url=coordinator.url, headers={"X-Forwarded-For": said}) as client:
            answer = await client.post(
                f"/v1/admin/transactions/{begun['id']}/branches/payment/resolve",
                json={"as": "confirmed", "reason": "seen in the ledger"},
            )
        by = [branch["resolution"]["by"] for branch in answer.json()["branches"] if branch["resolution"]]
        assert by == [f"operator at {recorded}"]
    finally:
        await asyncio.to_thread(coordinator.__exit__)


@on_servers
async def test_a_server_s_database_is_served_once_it_is_migrated(settings: dict[str, str], database_url: str) -> None:
    on_a_server = settings | {"HOLDFAST_DATABASE_URL": re.sub(r"\+\w+:", ":", database_url)}
    assert "python -m app migrate" in await asyncio.to_thread(failed, on_a_server)
    for _ in range(2):
        migrating = CoordinatorProcess(on_a_server, command="migrate")
        migrating.launch()
        assert await asyncio.to_thread(migrating.wait_end) == 0, migrating.log
    process = await started(on_a_server)
    try:
        assert (await begin(process.url)).status_code == 201
        assert (await get(process.url, "/readyz")) == {"status": "ready"}
    finally:
        await asyncio.to_thread(process.kill)


def test_a_stop_that_hangs_ends() -> None:
    """As a thread that waits for a dead disk does; Python waits for it without end."""
    hangs = "threading.Thread(target=threading.Event().wait).start()"
    code = f"import threading; from app.__main__ import _end_in; _end_in(0.01); {hangs}"
    ended = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, check=False, timeout=WAIT_TIMEOUT_S, capture_output=True, text=True
    )
    assert (ended.returncode, "event=stop_forced" in ended.stderr) == (1, True), ended.stderr


@on_servers
async def test_serve_waits_for_a_database_server_that_is_away_at_its_start(
    settings: dict[str, str], database_url: str, database_server: DatabaseServer
) -> None:
    migrate(database_url)
    database_server.crash()
    process = CoordinatorProcess(settings | {"HOLDFAST_DATABASE_URL": database_url})
    process.launch()
    try:
        await until(lambda: says(process, "event=waiting_for_database limit_s=60 "))
        database_server.start()  # not in a thread: the server ends with the thread that started it
        await until(lambda: says(process, "event=serving"))
        assert await get(process.url, "/readyz") == {"status": "ready"}
        assert process.log.count("event=waiting_for_database") == 1
    finally:
        await asyncio.to_thread(process.kill)


async def says(process: CoordinatorProcess, words: str) -> bool:
    return words in process.log


@pytest.mark.skipif(sys.platform != "linux", reason="prlimit is Linux's")
async def test_on_a_full_disk_nothing_is_ready(settings: dict[str, str]) -> None:
    """A limit on the size of files is felt as a disk that is full: no write can make the log of SQLite longer."""
    process = await started(settings)
    log = settings["HOLDFAST_DATABASE_URL"].removeprefix("sqlite:///") + "-wal"
    try:
        async with httpx.AsyncClient(base_url=process.url, timeout=WAIT_TIMEOUT_S) as client:
            while os.stat(log).st_size < INDEX_BYTES:  # or there is no place for the index of the log either
                assert (await client.post("/v1/transactions", json=ORDER)).status_code == 201
            _, hard = resource.prlimit(process.process_id, resource.RLIMIT_FSIZE)
            resource.prlimit(process.process_id, resource.RLIMIT_FSIZE, (os.stat(log).st_size, hard))
            for answer in (await client.get("/readyz"), await client.post("/v1/transactions", json=ORDER)):
                assert (answer.status_code, answer.json()["type"]) == (503, "/problems/unavailable")
                assert int(answer.headers["retry-after"]) >= 1
            assert (await client.get("/v1/transactions")).status_code == 200
            resource.prlimit(process.process_id, resource.RLIMIT_FSIZE, (hard, hard))
            async with asyncio.timeout(WAIT_TIMEOUT_S):
                while (await client.get("/readyz")).status_code != 200:  # it may be as it was a second ago
                    pass
            assert (await client.post("/v1/transactions", json=ORDER)).status_code == 201
    finally:
        await asyncio.to_thread(process.kill)


INVALID: Final[dict[str, str]] = {
    "HOLDFAST_PORT": "eighty",
    "HOLDFAST_CALL_TIMEOUT_S": "-1",
    "HOLDFAST_PARTICIPANTS": "{inventory: http://127.0.0.1}",
    "HOLDFAST_ALLOWED_ENDPOINTS": "everything",
    "HOLDFAST_TIMEOUT_DEFAULT_S": "3000000",
    "HOLDFAST_DATABASE_URL": "mongodb://127.0.0.1/holdfast",
}


def test_settings_that_are_not_valid_are_named_in_one_line(tmp_path: Path) -> None:
    valid = {"HOLDFAST_DATABASE_URL": f"sqlite:///{tmp_path / 'holdfast.db'}"}
    for name, value in INVALID.items():
        assert name in failed(valid | {name: value})
    assert not os.listdir(tmp_path), "nothing was made"


def test_a_database_that_can_not_be_used_is_named_in_one_line(tmp_path: Path) -> None:
    for command in ("serve", "migrate"):
        for url in (
            f"sqlite:///{tmp_path / 'none' / 'holdfast.db'}",
            "postgresql://nobody:secret@127.0.0.1:1/none",
            "mysql://nobody:secret@127.0.0.1:1/none",
        ):
            said = failed({"HOLDFAST_DATABASE_URL": url, "HOLDFAST_DATABASE_WAIT_S": "0"}, command)
            assert "HOLDFAST_DATABASE_URL" in said
            assert "secret" not in said


def test_a_port_that_is_taken_is_named(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        said = failed({"HOLDFAST_DATABASE_URL": f"sqlite:///{tmp_path / 'holdfast.db'}", "HOLDFAST_PORT": port})
        assert "HOLDFAST_PORT" in said
        assert port in said


async def test_a_file_has_one_coordinator_and_is_free_again_when_that_is_killed(
    coordinator: CoordinatorProcess, settings: dict[str, str]
) -> None:
    second = CoordinatorProcess(settings)
    second.launch()
    assert second.wait_end() == 1
    assert "another coordinator uses this SQLite file" in second.log
    assert (await begin(coordinator.url)).status_code == 201
    coordinator.kill()
    with second:
        assert (await get(second.url, "/v1/transactions"))["items"][0]["outcome"] == "confirmed"


async def test_a_file_has_one_coordinator_by_whatever_name_it_is_opened(
    coordinator: CoordinatorProcess, settings: dict[str, str], tmp_path: Path
) -> None:
    folder, path = tmp_path / "folder", Path(settings["HOLDFAST_DATABASE_URL"].removeprefix("sqlite:///"))
    folder.symlink_to(path.parent)
    (tmp_path / "alias.db").symlink_to(path.name)
    for name in (tmp_path / "alias.db", folder / path.name, folder / "alias.db"):
        said = failed(settings | {"HOLDFAST_DATABASE_URL": f"sqlite:///{name}"})
        assert "another coordinator uses this SQLite file" in said


def test_a_misspelled_setting_is_warned_of(tmp_path: Path) -> None:
    settings = {"HOLDFAST_DATABASE_URL": f"sqlite:///{tmp_path / 'holdfast.db'}", "HOLDFAST_CALL_TIMEOUT": "9"}
    with CoordinatorProcess(settings) as process:
        assert [line for line in process.lines if "HOLDFAST_CALL_TIMEOUT " in line and "WARNING" in line]


def test_another_format_is_refused(settings: dict[str, str]) -> None:
    assert "HOLDFAST_LOG_FORMAT" in failed(settings | {"HOLDFAST_LOG_FORMAT": "xml"})
