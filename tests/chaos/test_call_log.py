"""The logs say what happened: around the fence, whatever goes wrong, in one line before and one after."""

from collections.abc import MutableMapping
from pathlib import Path
from typing import Annotated, Any

import httpx
import pytest
from fastapi import Body, FastAPI, Response

from tests.chaos import call_log
from tests.chaos.call_log import CallLogMiddleware, Fault, Faults, RequestLog, read_log
from tests.harness.evidence import Request
from tests.harness.notes import Note, Notebook, read_notes

HEADERS = {"Tcc-Transaction-Id": "t-1", "Tcc-Branch": "debit-0", "Tcc-Attempt": "3"}


@pytest.fixture
def log_path(tmp_path: Path) -> Path:
    (tmp_path / "on").touch()
    return tmp_path / "requests.tsv"


async def answered(log_path: Path, monkeypatch: pytest.MonkeyPatch, fault: Fault) -> tuple[int, list[Request]]:
    """What a caller gets of one Confirm that is done, and what the log says."""
    monkeypatch.setattr(call_log, "CHANCES", {fault: 1.0})
    monkeypatch.setattr(call_log, "SLOW_S", (0.0, 0.0))
    monkeypatch.setattr(call_log, "STALL_S", (0.0, 0.0))
    inner = FastAPI()
    inner.post("/tcc/confirm")(lambda: Response("{}", 200))
    inner.add_middleware(CallLogMiddleware, log=RequestLog(log_path), faults=Faults(log_path.parent / "on", "seed"))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(inner), base_url="http://north") as client:
        response = await client.post("/tcc/confirm", headers=HEADERS)
    return response.status_code, list(read_log(log_path, "north"))


@pytest.mark.parametrize(
    ("fault", "seen", "done"),
    [
        (Fault.NONE, 200, 200),
        (Fault.SLOW, 200, 200),
        (Fault.STALL, 200, 200),
        (Fault.FAIL_BEFORE, 500, 500),
        (Fault.FAIL_AFTER, 500, 200),
    ],
)
async def test_the_log_says_what_was_done_not_what_the_caller_saw(
    log_path: Path, monkeypatch: pytest.MonkeyPatch, fault: Fault, seen: int, done: int
) -> None:
    status, (request,) = await answered(log_path, monkeypatch, fault)
    assert (status, request.status, request.fault) == (seen, done, fault)
    assert (request.participant, request.operation, request.attempt) == ("north", "confirm", 3)
    assert (request.transaction_id, request.branch) == ("t-1", "debit-0")
    assert request.answered_at is not None
    assert request.answered_at >= request.arrived_at


async def test_a_stalled_call_is_carried_out_though_its_caller_has_gone(
    log_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(call_log, "CHANCES", {Fault.STALL: 1.0})
    inner = FastAPI()

    async def leave(_self: Faults, _fault: Fault) -> None:
        """While the call is stalled its caller leaves, and a server says so before it hands out what it has read."""
        arriving[:] = [{"type": "http.disconnect"}]

    monkeypatch.setattr(Faults, "delay", leave)

    @inner.post("/tcc/try")
    async def try_(asked: Annotated[dict[str, int], Body()]) -> dict[str, int]:
        return asked

    stalled = CallLogMiddleware(inner, log=RequestLog(log_path), faults=Faults(log_path.parent / "on", "seed"))
    arriving: list[dict[str, Any]] = [
        {"type": "http.request", "body": b'{"amount"', "more_body": True},
        {"type": "http.request", "body": b": 5}", "more_body": False},
    ]

    async def receive() -> MutableMapping[str, Any]:
        return arriving.pop(0)

    async def send(message: MutableMapping[str, Any]) -> None:
        """Nobody listens."""

    headers = [(name.lower().encode(), value.encode()) for name, value in HEADERS.items()]
    headers.append((b"content-type", b"application/json"))
    scope = {"type": "http", "method": "POST", "path": "/tcc/try", "query_string": b"", "headers": headers}
    await stalled(scope, receive, send)
    (request,) = read_log(log_path, "north")
    assert (request.operation, request.status, request.fault) == ("try", 200, Fault.STALL)


async def test_without_the_file_nothing_goes_wrong(log_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (log_path.parent / "on").unlink()
    status, (request,) = await answered(log_path, monkeypatch, Fault.FAIL_BEFORE)
    assert (status, request.status, request.fault) == (200, 200, Fault.NONE)


def test_a_process_that_died_leaves_what_had_arrived(log_path: Path) -> None:
    RequestLog(log_path).arrived("cancel", "t-1", "debit-0", "1")
    (request,) = read_log(log_path, "north")
    assert (request.operation, request.status, request.answered_at, request.succeeded) == ("cancel", None, None, False)


def test_notes_are_read_as_they_were_written(tmp_path: Path) -> None:
    made = [
        Note(kind="begin", replica=1, sent_at=1.0, seen_at=2.0, status=0, key="k"),
        Note(kind="get", replica=0, sent_at=1.5, seen_at=2.5, status=200, transaction_id="t-1", decision="confirm"),
    ]
    notebook = Notebook(tmp_path / "notes.jsonl")
    for note in made:
        notebook.write(note)
    assert list(read_notes(tmp_path / "notes.jsonl")) == made
    assert [note.decided for note in made] == [False, True]
