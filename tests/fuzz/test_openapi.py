"""OpenAPI describes what the service does: requests made from the schema, right and wrong ones, over every route.

No answer is a server error, and each has a status, a media type, headers and a body that the schema documents.
"""

import itertools
import socket
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import httpx
import pytest
import schemathesis
import uvicorn
from hypothesis import HealthCheck, seed, settings
from hypothesis.errors import FlakyStrategyDefinition
from schemathesis.specs.openapi import checks as openapi

from app.main import create_app
from app.settings import Settings
from tests.harness.budget import TIMES
from tests.harness.coordinator_app import base_url

TIMEOUT_S: Final = 30.0
STATUSES: Final = itertools.cycle([200, 200, 200, 200, 409, 204, 200, 503, 200, 202, 410, 200])


async def participant(request: httpx.Request) -> httpx.Response:
    """Mostly willing, sometimes not; the one called stuck never confirms, so that something hangs all the time."""
    if request.url.path == "/stuck/confirm":
        return httpx.Response(410)
    return httpx.Response(next(STATUSES), json={"hold_id": "h-1"})


class Fuzzed:
    """A coordinator on a real port in a thread of its own, with something in its database."""

    def __init__(self, database_url: str) -> None:
        limits = Settings(
            database_url=database_url,
            participants={name: {"base_url": base_url(name)} for name in ("inventory", "stuck")},
            timeout_default_s=0.2,
            timeout_max_s=1.0,
            wait_default_s=0.1,
            retry_base_s=0.001,
            retry_cap_s=0.01,
            shutdown_timeout_s=0.1,
        )
        app = create_app(limits, transport=httpx.MockTransport(participant))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._server = uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False, lifespan="on"))
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [self._listener]}, daemon=True)
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.transaction_ids: list[str] = []

    def start(self) -> None:
        self._thread.start()
        branches = [{"participant": "inventory", "payload": 1}, {"name": "b", "participant": "inventory"}]
        with httpx.Client(base_url=self.url, timeout=TIMEOUT_S) as client:
            for _ in range(12):
                answer = client.post("/v1/transactions", json={"branches": branches, "timeout_s": 0.5})
                body = answer.json()
                self.transaction_ids.append(body.get("transaction", body)["id"])
            for _ in range(4):
                stuck = {"branches": [{"participant": "stuck"}], "timeout_s": 1.0, "answer_at": "decision"}
                body = client.post("/v1/transactions", json=stuck).json()
                self.transaction_ids.append(body.get("transaction", body)["id"])

    def stop(self) -> None:
        self._server.should_exit = True
        self._thread.join(TIMEOUT_S)
        assert not self._thread.is_alive()


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fuzzed]:
    folder: Path = tmp_path_factory.mktemp("fuzz")
    running = Fuzzed(f"sqlite:///{folder / 'holdfast.db'}")
    running.start()
    yield running
    running.stop()


DOCUMENT: Final = create_app(Settings(database_url="sqlite:///never-opened.db")).openapi()
schema = schemathesis.openapi.from_dict(DOCUMENT)
CHECKS: Final = [
    schemathesis.checks.not_a_server_error,
    openapi.status_code_conformance,
    openapi.content_type_conformance,
    openapi.response_headers_conformance,
    openapi.response_schema_conformance,
]


@schema.parametrize()
@settings(
    max_examples=40 * TIMES,
    deadline=None,
    derandomize=TIMES == 1,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large],
)
def test_every_answer_is_documented(case: Any, fuzzed: Fuzzed) -> None:
    aim(case, fuzzed)
    answer = case.call(base_url=fuzzed.url, timeout=TIMEOUT_S)
    case.validate_response(answer, checks=CHECKS)
    assert answer.status_code < 400 or answer.headers["content-type"] == ["application/problem+json"]


TURN: Final = itertools.count()


def aim(case: Any, fuzzed: Fuzzed) -> None:
    """Let two of three requests name what there is: drawn names and ids never would."""
    turn = next(TURN)
    if turn % 3 == 0:
        return
    if "transaction_id" in (case.path_parameters or {}):
        case.path_parameters["transaction_id"] = fuzzed.transaction_ids[turn % len(fuzzed.transaction_ids)]
    if "name" in (case.path_parameters or {}):
        case.path_parameters["name"] = "stuck" if case.method == "DELETE" else "inventory"
    if "branch" in (case.path_parameters or {}):
        case.path_parameters["branch"] = "inventory"
    if isinstance(case.body, dict) and isinstance(case.body.get("branches"), list):
        for branch in case.body["branches"]:
            if isinstance(branch, dict) and "participant" in branch:
                branch["participant"] = "inventory"
                branch.pop("endpoints", None)
    if isinstance(case.body, dict) and "base_url" in case.body:
        case.body["base_url"] = base_url("inventory")


ONLY_OURS: Final = schemathesis.Config.from_dict({"phases": {"stateful": {"inference": {"algorithms": []}}}})
STEPS: Final = settings(
    max_examples=3, stateful_step_count=10, deadline=None, suppress_health_check=list(HealthCheck), database=None
)


def test_every_link_leads_to_what_it_says(fuzzed: Fuzzed) -> None:
    """Requests in a row, each made from what the one before was answered: nothing undocumented comes of it.

    Short runs with seeds of their own, because a coordinator that is at work doesn't answer the same twice: that ends a
    run, and a failure is kept aside instead of being repeated.
    """
    landed: dict[str, set[int]] = {}
    faults: list[BaseException] = []

    class Linked(schemathesis.openapi.from_dict(DOCUMENT, config=ONLY_OURS).as_state_machine()):  # type: ignore[misc]
        def before_call(self, case: Any) -> None:
            if isinstance(case.body, dict) and "base_url" in case.body:
                case.body |= {"base_url": base_url("inventory"), "call_timeout_s": 1, "concurrency_max": 8}
            if isinstance(case.body, dict) and "timeout_s" in case.body:
                case.body["timeout_s"] = 0.2

        def get_call_kwargs(self, case: Any) -> dict[str, Any]:
            return {"base_url": fuzzed.url, "timeout": TIMEOUT_S}

        def validate_response(self, response: Any, case: Any, **_: Any) -> None:
            try:
                case.validate_response(response, checks=CHECKS)
            except (Exception, ExceptionGroup) as error:
                faults.append(error)

        def step(self, input: Any) -> Any:
            output = super().step(input)
            if input.transition is not None and input.is_applied:
                landed.setdefault(input.transition.id, set()).add(output.response.status_code)
            return output

    for number in range(2 * TIMES):
        with suppress(FlakyStrategyDefinition):
            machine: Any = type(f"Linked{number}", (Linked,), {})
            seed(number)(machine).run(settings=STEPS)
    if faults:
        raise ExceptionGroup("undocumented", [error for error in faults if isinstance(error, Exception)])
    assert {200} <= set().union(*landed.values()), "links were followed, and led somewhere"


def references(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        yield from [node["$ref"]] if isinstance(node.get("$ref"), str) else []
    for inner in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        yield from references(inner)


def test_every_reference_in_the_document_leads_somewhere() -> None:
    document = create_app(Settings()).openapi()
    found = set(references(document))
    assert len(found) > 10
    for reference in found:
        target: Any = document
        for part in reference.removeprefix("#/").split("/"):
            assert part in target, reference
            target = target[part]
