"""`make run`: the curl commands that it prints work as printed, and nothing is left when it stops."""

import asyncio
import os
import re
import shlex
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from examples.keys import YOU
from examples.processes import Port, until
from examples.run import PORTS, curls, serve, welcome
from tests.harness.repository import ROOT


@pytest.fixture
def ports() -> Any:
    reserved = {name: Port() for name in PORTS}
    yield {name: port.number for name, port in reserved.items()}
    for port in reserved.values():
        port.release()


@pytest.fixture
async def client() -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(timeout=30) as client:
        yield client


CAT = re.compile(r"\$\(cat ([^)]+)\)")


def requested(curl: str) -> tuple[str, str, dict[str, Any]]:
    """Method, URL and the rest of what a curl command sends, for httpx."""
    parser = iter(shlex.split(curl.replace("\\\n", ""))[1:])
    url, headers, body = "", {}, None
    for word in parser:
        match word:
            case "-i":
                pass
            case "-H":
                name, _, value = next(parser).partition(": ")
                headers[name] = CAT.sub(lambda file: Path(file[1]).read_text().strip(), value)
            case "-d":
                body = next(parser)
            case _:
                assert not url, f"what is {word}?"
                url = word
    return "GET" if body is None else "POST", url, {"headers": headers, "content": body}


async def test_what_is_printed_works_as_printed(
    ports: dict[str, int], client: httpx.AsyncClient, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    serving = asyncio.create_task(serve(ports, tmp_path))
    printed = ""

    async def welcomed() -> str | None:
        nonlocal printed
        assert not serving.done(), await serving
        printed += capsys.readouterr().out
        return printed if welcome(ports, tmp_path) in printed else None

    said = await until("everything is up", welcomed, within_s=60)
    begin, look, hung = curls(f"http://127.0.0.1:{ports['coordinator']}", tmp_path / "keys" / YOU)
    assert all(curl in said for curl in (begin, look, hung))

    answers = []
    for curl in (begin, look, hung):
        method, url, rest = requested(curl)
        answers.append(await client.request(method, url, **rest))
    assert [answer.status_code for answer in answers] == [201, 200, 200]
    assert answers[0].json()["phase"] == "confirmed"
    assert [item["id"] for item in answers[1].json()["items"]] == [answers[0].json()["id"]]
    assert answers[2].json()["items"] == []
    for name in ("first", YOU, "order", "inventory", "payment", "shipping"):
        assert (tmp_path / "keys" / name).stat().st_mode & 0o777 == 0o600
    without = await client.get(f"http://127.0.0.1:{ports['coordinator']}/v1/admin/hung")
    assert (without.status_code, without.headers["www-authenticate"]) == (401, "Bearer")
    order = {"customer": "ada", "sku": "A-1", "quantity": 1, "day": "monday"}
    assert (await client.post(f"http://127.0.0.1:{ports['order']}/orders", json=order)).status_code == 201

    serving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await serving
    for port in ports.values():
        with pytest.raises(httpx.ConnectError):
            await client.get(f"http://127.0.0.1:{port}/healthz")


async def test_a_port_that_is_taken_is_named_and_nothing_is_started(
    ports: dict[str, int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server = await asyncio.start_server(lambda reader, writer: writer.close(), "127.0.0.1", ports["payment"])
    async with server:
        assert await serve(ports, tmp_path) == 1
    assert f"Taken: port {ports['payment']} (payment)." in capsys.readouterr().err
    assert os.listdir(tmp_path) == []


def test_the_readme_shows_the_same_commands() -> None:
    readme = on_one_line((ROOT / "README.md").read_text())
    for curl in curls("http://127.0.0.1:8000", Path("~/holdfast-tour/.run/keys/you")):
        assert on_one_line(curl) in readme, f"put this into README.md:\n{curl}"


def on_one_line(text: str) -> str:
    return " ".join(text.split())
