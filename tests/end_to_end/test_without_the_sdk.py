"""docs/how-to/without-the-sdk.md: its listings in JavaScript and Go keep the five rules, and take part in sagas."""

import json
import os
import shutil
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import httpx
import pytest

from app.calling.caller import Caller
from tests.harness.coordinator_app import Json, check_problem, running
from tests.harness.markdown import Page

PAGE: Final = Page("docs/how-to/without-the-sdk.md")
COMMANDS: Final = {"js": ["node", "participant.mjs"], "go": ["go", "run", "participant.go"]}
CHARGE: Final = {"cents": 500}


@pytest.fixture(scope="module", params=["js", "go"])
def url(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Where the listing of this language listens; stopped at the end with all that it has started."""
    language, folder = request.param, tmp_path_factory.mktemp("without")
    if shutil.which(COMMANDS[language][0]) is None:
        pytest.skip(f"needs {COMMANDS[language][0]}")
    (listing,) = [code for code in PAGE.code(language) if code.file]
    assert listing.file is not None
    Path(folder, listing.file).write_text(listing.text)
    if language == "go":
        command = [str(folder / "participant")]
        environment = os.environ | {"GO111MODULE": "off", "GOCACHE": str(folder / "cache"), "GOFLAGS": ""}
        subprocess.run(["go", "build", "-o", command[0], listing.file], cwd=folder, env=environment, check=True)
    else:
        command = COMMANDS[language]
    with subprocess.Popen(
        command, cwd=folder, env=os.environ | {"PORT": "0"}, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        try:
            yield f"http://127.0.0.1:{int(process.stdout.readline())}"
        finally:
            process.kill()


def call(url: str, step: str, operation: str, transaction: str, payload: Any = None, **members: Any) -> httpx.Response:
    body = {"transaction_id": transaction, "branch": "b", "operation": operation, "attempt": 1, "payload": payload}
    return httpx.post(f"{url}/{step}/{operation}", json=body | members, trust_env=False)


def new() -> str:
    return str(uuid.uuid4())


def slug(answer: httpx.Response) -> str:
    assert (answer.status_code, answer.headers["content-type"]) == (409, "application/problem+json"), answer.text
    return str(answer.json()["type"]).removeprefix("/problems/")


@pytest.mark.parametrize(("step", "payload"), [("orders", {"sku": "A-1"}), ("bank", CHARGE), ("mail", None)])
def test_a_duplicate_gets_the_stored_answer(url: str, step: str, payload: Any) -> None:
    transaction = new()
    first, second = (call(url, step, "action", transaction, payload) for _ in range(2))
    assert first.status_code == second.status_code == 200
    assert first.json() == second.json()


def test_what_never_came_is_undone_and_refused_when_it_comes_later(url: str) -> None:
    transaction = new()
    assert call(url, "orders", "compensation", transaction).status_code == 200
    assert slug(call(url, "orders", "action", transaction, {"sku": "A-1"})) == "already-compensated"
    assert call(url, "orders", "compensation", transaction).status_code == 200


def test_what_was_seen_done_and_has_no_row_is_forgotten(url: str) -> None:
    assert slug(call(url, "orders", "compensation", new(), held=True)) == "forgotten"


def test_what_was_undone_stays_undone(url: str) -> None:
    transaction = new()
    assert call(url, "orders", "action", transaction, {"sku": "A-1"}).status_code == 200
    for _ in range(2):
        assert call(url, "orders", "compensation", transaction, held=True).status_code == 200
    assert slug(call(url, "orders", "action", transaction, {"sku": "A-1"})) == "already-compensated"


def test_a_pivots_refusal_is_final(url: str) -> None:
    transaction = new()
    assert slug(call(url, "bank", "action", transaction, {"cents": 5000})) == "refused"
    assert slug(call(url, "bank", "action", transaction, CHARGE)) == "refused", "a delayed attempt charges nothing"
    assert call(url, "bank", "cancel", transaction).status_code == 200


def test_a_pivots_cancel_is_final(url: str) -> None:
    transaction = new()
    assert call(url, "bank", "cancel", transaction).status_code == 200
    assert slug(call(url, "bank", "action", transaction, CHARGE)) == "already-compensated"
    done = new()
    assert call(url, "bank", "action", done, CHARGE).status_code == 200
    withdrawn = call(url, "bank", "cancel", done)
    assert (slug(withdrawn), withdrawn.json()["result"]) == ("already-done", {"charged": 500})


async def test_they_take_part_in_a_saga(url: str, sqlite_url: str) -> None:
    (example,) = [json.loads(code.text) for code in PAGE.code("json")]
    request = json.loads(json.dumps(example).replace("http://127.0.0.1:9100", url))
    async with running(sqlite_url) as service:
        transport = httpx.AsyncHTTPTransport()
        caller: Caller = service.parts.caller
        caller._transport = transport
        assert (await service.begin(request)).json()["outcome"] == "confirmed"
        poor: Json = request | {"branches": [*request["branches"]]}
        poor["branches"][1] = poor["branches"][1] | {"payload": {"cents": 5000}}
        document = check_problem(await service.begin(poor), 409, "transaction-cancelled")
        assert document["transaction"]["reason"]["detail"] == "insufficient funds"
        await transport.aclose()
