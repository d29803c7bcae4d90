"""The links in the OpenAPI document, each followed from an answer that has it."""

import re
from typing import Any, Final

import httpx
import pytest

from app.main import create_app
from app.settings import Settings
from tests.harness.coordinator_app import Json, Service, base_url, reply

DOCUMENT: Final[Json] = create_app(Settings()).openapi()
OPERATIONS: Final = {
    operation["operationId"]: (method.upper(), path, operation)
    for path, methods in DOCUMENT["paths"].items()
    for method, operation in methods.items()
}
LINKS: Final = [
    (operation_id, int(status), name)
    for operation_id, (_, _, operation) in OPERATIONS.items()
    for status, answer in operation["responses"].items()
    for name in answer.get("links", {})
]
BEGIN: Final = {"branches": [{"participant": "inventory"}]}
STUCK: Final = {"branches": [{"participant": "stuck"}], "answer_at": "decision"}
REGISTRATION: Final = {"base_url": base_url("inventory")}
SOURCES: Final[dict[tuple[str, int], tuple[str, Any]]] = {
    ("beginTransaction", 201): ("/v1/transactions", BEGIN),
    ("beginTransaction", 202): ("/v1/transactions", BEGIN | {"answer_at": "record"}),
    ("beginTransaction", 409): ("/v1/transactions", {"branches": [{"participant": "full"}]}),
    ("listTransactions", 200): ("/v1/transactions?limit=1", None),
    ("listCalls", 200): ("/v1/transactions/{id}/calls?limit=1", None),
    ("listHung", 200): ("/v1/admin/hung?limit=1", None),
    ("listParticipants", 200): ("/v1/participants", None),
    ("listAudit", 200): ("/v1/admin/audit?limit=1", None),
    ("putParticipant", 200): ("/v1/participants/inventory", REGISTRATION),
    ("putParticipant", 201): ("/v1/participants/another", REGISTRATION),
}


@pytest.fixture
async def source(service: Service, request: pytest.FixtureRequest) -> tuple[str, httpx.Response]:
    """The operation, and an answer of the wanted status."""
    await service.register("stuck", "full")
    service.participants.script("/stuck/confirm", [reply(410)])
    service.participants.script("/full/try", [reply(409)])
    for _ in range(2):
        await service.until((await service.begin(STUCK)).json()["id"], lambda transaction: transaction["hung"])
    begun = (await service.begin(BEGIN)).json()
    for _ in range(2):
        await service.register("inventory")  # an entry of the record each
    path, body = SOURCES[request.param]
    method = OPERATIONS[request.param[0]][0]
    answer = await service.client.request(method, path.replace("{id}", begun["id"]), json=body)
    assert answer.status_code == request.param[1], answer.text
    return request.param[0], answer


def found(expression: Any, template: str, answer: httpx.Response) -> Any:
    """What an expression finds (OpenAPI 3.1, 4.8.20.4); lists and objects may hold some."""
    if isinstance(expression, dict):
        return {name: found(value, template, answer) for name, value in expression.items()}
    if isinstance(expression, list):
        return [found(value, template, answer) for value in expression]
    expression = expression.removeprefix("{").removesuffix("}")
    if expression.startswith("$response.body#/"):
        value = answer.json()
        for part in expression.removeprefix("$response.body#/").split("/"):
            value = value[int(part) if isinstance(value, list) else part]
        return value
    name = expression.removeprefix("$request.path.")
    pattern = re.sub(r"\\\{(\w+)\\\}", r"(?P<\1>[^/?]+)", re.escape(template))
    match = re.match(pattern, answer.request.url.path)
    assert match is not None
    return match[name]


def test_each_link_has_a_source() -> None:
    assert {(operation_id, status) for operation_id, status, _ in LINKS} == SOURCES.keys()


@pytest.mark.parametrize("source", SOURCES, indirect=True, ids=lambda source: f"{source[0]} {source[1]}")
async def test_links_lead_somewhere(service: Service, source: tuple[str, httpx.Response]) -> None:
    """None of them is answered 404 or 422: the id, the name or the cursor was the right one."""
    operation_id, answer = source
    _, template, operation = OPERATIONS[operation_id]
    links = operation["responses"][str(answer.status_code)]["links"].values()
    for link in sorted(links, key=lambda link: "delete" in link["operationId"]):  # what it removes, the others need
        method, path, _ = OPERATIONS[link["operationId"]]
        query = {}
        for name, expression in link["parameters"].items():
            value = found(expression, template, answer)
            assert isinstance(value, str), link
            if f"{{{name}}}" in path:
                path = path.replace(f"{{{name}}}", value)
            else:
                query[name] = value
        body = found(link["requestBody"], template, answer) if "requestBody" in link else None
        if link["operationId"] == "resolveBranch":
            body = {"as": "confirmed", "reason": "seen"}
        led_to = await service.client.request(method, path, params=query, json=body)
        assert led_to.status_code in (200, 201, 202, 204, 409), led_to.text
