"""Processes are really there, really killed, and gone when whoever started them is."""

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Final

import httpx
import pytest

from examples.processes import HOST, ROOT, Port, Process, Processes, ProcessFailed, is_free, until

SERVER: Final = """
import http.server, os, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = str(os.getpid()).encode()
        self.send_response(200); self.send_header("Content-Length", str(len(body))); self.end_headers()
        self.wfile.write(body)
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""
STARTER: Final = """
import asyncio, sys
from pathlib import Path
from examples.processes import Processes, run_until_stopped
async def main():
    async with Processes(Path(sys.argv[1])) as processes:
        process = processes.add("server", [sys.executable, "-c", sys.argv[3], sys.argv[2]], port=int(sys.argv[2]),
                                health="/", environment={})
        await processes.start(process)
        print("up", flush=True)
        await asyncio.Event().wait()
sys.exit(run_until_stopped(main, status_when_stopped=7))
"""


def add_server(processes: Processes, port: Port, program: str = SERVER) -> Process:
    command = [sys.executable, "-c", program, str(port.number)]
    return processes.add("server", command, port=port.number, health="/", environment={})


async def ask_pid(process: Process) -> int:
    async with httpx.AsyncClient() as client:
        return int((await client.get(process.url)).text)


async def free(port: int) -> bool | None:
    return is_free(port) or None


async def test_a_killed_process_refuses_connections_and_comes_back_on_its_port(tmp_path: Path) -> None:
    port = Port()
    async with Processes(tmp_path) as processes:
        server = add_server(processes, port)
        await processes.start(server)
        first = await ask_pid(server)
        assert not is_free(port.number)
        server.kill()
        assert not server.running
        with pytest.raises(httpx.ConnectError):
            await ask_pid(server)
        await processes.start(server)
        assert await ask_pid(server) != first
    port.release()
    assert not server.running
    assert is_free(port.number)


async def test_a_process_that_ends_or_never_answers_is_reported_with_its_log(tmp_path: Path) -> None:
    port = Port()
    async with Processes(tmp_path) as processes:
        ends = add_server(processes, port, "import sys; sys.exit('no such thing')")
        with pytest.raises(ProcessFailed, match=r"server ended with status 1; see .*server\.log"):
            await processes.start(ends)
        assert "no such thing" in (tmp_path / "server.log").read_text()
        mute = add_server(processes, port, "import signal; signal.pause()")
        mute.start()
        with pytest.raises(ProcessFailed, match=r"server is healthy; see .*server\.log"):
            await mute.healthy(within_s=0.1)
    port.release()


async def test_what_ignores_sigterm_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("examples.processes.STOPPED_WITHIN_S", 0.2)
    port = Port()
    async with Processes(tmp_path) as processes:
        stubborn = add_server(processes, port, "import signal; signal.signal(15, signal.SIG_IGN)\n" + SERVER)
        await processes.start(stubborn)
    port.release()
    assert not stubborn.running


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGTERM, 7), (signal.SIGINT, 7), (signal.SIGKILL, -signal.SIGKILL)]
)
async def test_whoever_started_them_takes_them_along(tmp_path: Path, number: signal.Signals, status: int) -> None:
    if number == signal.SIGKILL and sys.platform != "linux":
        pytest.skip("only Linux tells a process that its parent has died")
    port = Port()
    command = [sys.executable, "-c", STARTER, str(tmp_path), str(port.number), SERVER]
    starter = await asyncio.create_subprocess_exec(*command, cwd=ROOT, stdout=subprocess.PIPE)
    assert starter.stdout is not None
    assert await starter.stdout.readline() == b"up\n"
    os.kill(starter.pid, number)
    assert await starter.wait() == status
    await until("the server is gone", lambda: free(port.number), within_s=10)
    port.release()


async def test_the_environment_configures_nothing_unasked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOLDFAST_RETRY_CAP_S", "1")
    monkeypatch.setenv("DATABASE_URL", "sqlite:///elsewhere.db")
    processes = Processes(tmp_path)
    service = processes.service("inventory", 1, HOLD_MAX_S="5")
    assert "DATABASE_URL" not in service.environment
    assert service.environment["HOLD_MAX_S"] == "5"
    coordinator = processes.coordinator(2, database_url="sqlite://", participants={"a": "http://a"}, retry_base_s=3)
    settings = {name: value for name, value in coordinator.environment.items() if name.startswith("HOLDFAST_")}
    assert settings == {
        "HOLDFAST_HOST": HOST,
        "HOLDFAST_PORT": "2",
        "HOLDFAST_DATABASE_URL": "sqlite://",
        "HOLDFAST_PARTICIPANTS": '{"a": "http://a"}',
        "HOLDFAST_RETRY_BASE_S": "3",
    }


async def test_until_says_what_it_waited_for() -> None:
    async def never() -> None:
        return None

    with pytest.raises(TimeoutError, match=r"not within 0\.01 s: a miracle"):
        await until("a miracle", never, within_s=0.01)
