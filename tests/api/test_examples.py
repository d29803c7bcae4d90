"""The OpenAPI document is good to read: requests that a person can send, answers that look like the real ones.

Every request example is sent to a real application; every answer is checked against the schema beside it, with no
member missing or left over.
"""

import copy
import json
from collections.abc import AsyncIterator, Iterator
from typing import Any, Final

import httpx
import jsonschema_rs
import pytest

from app.api.examples import PROBLEMS, TRANSACTION_ID
from app.api.problems import CATALOGUE, MEDIA_TYPE
from app.main import create_app
from app.protocol.transaction_id import is_id
from app.settings import Settings
from app.storage.encryption import Encryption
from tests.harness.coordinator_app import Json, Service, base_url, reply, running

DOCUMENT: Final[Json] = create_app(Settings()).openapi()
OPERATIONS: Final[dict[str, Json]] = {
    operation["operationId"]: {**operation, "method": method.upper(), "path": path}
    for path, methods in DOCUMENT["paths"].items()
    for method, operation in methods.items()
}
BEGIN: Final = {"branches": [{"participant": "inventory"}]}


LEFT_OUT = {"kinds"}
"""Members that an answer has only if there is something to say."""


@pytest.fixture
async def service(sqlite_url: str) -> AsyncIterator[Service]:
    async with running(sqlite_url, secrets_key=Encryption.new_key()) as service:
        await service.register("inventory", "payment")
        yield service


def requests() -> Iterator[tuple[str, str]]:
    for operation_id, operation in OPERATIONS.items():
        for media in operation.get("requestBody", {}).get("content", {}).values():
            yield from ((operation_id, name) for name in media.get("examples", {}))


def answers() -> Iterator[tuple[str, str, str, Json]]:
    """Operation, status, media type and what is documented of each answer that has a body."""
    for operation_id, operation in OPERATIONS.items():
        for status, answer in operation["responses"].items():
            yield from ((operation_id, status, kind, media) for kind, media in answer.get("content", {}).items())


def closed(node: Any) -> Any:
    """A schema under which an object has all of its documented members and no other."""
    if isinstance(node, list):
        return [closed(each) for each in node]
    if not isinstance(node, dict):
        return node
    node = {name: closed(value) for name, value in node.items()}
    if node.get("type") == "object" and "properties" in node:
        node |= {
            "additionalProperties": False,
            "required": [each for each in node["properties"] if each not in LEFT_OUT],
        }
    return node


def faults(schema: Json, value: Any, *, exact: bool) -> list[str]:
    components = copy.deepcopy(DOCUMENT["components"])
    whole = {**schema, "components": closed(components) if exact else components}
    return [error.message for error in jsonschema_rs.Draft202012Validator(whole).iter_errors(value)]


def test_every_operation_says_what_it_is_for() -> None:
    summaries = [operation["summary"] for operation in OPERATIONS.values()]
    assert len(set(summaries)) == len(summaries)
    for operation_id, operation in OPERATIONS.items():
        assert len(operation["summary"].split()) >= 2, operation_id
        assert len(operation["description"].split()) >= 8, operation_id
        assert operation["description"].rstrip().endswith((".", "why")), operation_id
        for status, answer in operation["responses"].items():
            assert answer["description"] != "Successful Response", (operation_id, status)


def test_every_tag_is_described_and_used() -> None:
    described = {tag["name"] for tag in DOCUMENT["tags"] if tag["description"].endswith(".")}
    assert described == {tag for operation in OPERATIONS.values() for tag in operation["tags"]}


def test_every_parameter_is_described() -> None:
    for operation_id, operation in OPERATIONS.items():
        for parameter in operation.get("parameters", ()):
            assert parameter.get("description"), (operation_id, parameter["name"])


def test_every_body_has_examples() -> None:
    with_body = {operation_id for operation_id, operation in OPERATIONS.items() if "requestBody" in operation}
    assert with_body == {operation_id for operation_id, _ in requests()}
    assert [(operation_id, status) for operation_id, status, _, media in answers() if not media.get("examples")] == []


@pytest.mark.parametrize(("operation_id", "name"), list(requests()))
async def test_every_request_is_accepted(service: Service, operation_id: str, name: str) -> None:
    operation = OPERATIONS[operation_id]
    body = operation["requestBody"]["content"]["application/json"]["examples"][name]["value"]
    await service.register("inventory", "payment", "shipping")
    values = {each["name"]: example(each) for each in operation.get("parameters", ()) if each["in"] == "path"}
    if "transaction_id" in values:
        service.participants.script(f"/{values['branch']}/confirm", [reply(410)])
        stuck = {"branches": [{"participant": values["branch"]}], "answer_at": "decision"}
        values["transaction_id"] = (await service.begin(stuck)).json()["id"]
    if "key_id" in values:
        key = {"name": "order-service", "roles": ["initiator"]}
        values["key_id"] = (await service.client.post("/v1/admin/keys", json=key)).json()["id"]
    headers = {each["name"]: str(example(each)) for each in operation.get("parameters", ()) if each["in"] == "header"}
    answer = await service.client.request(
        operation["method"], operation["path"].format(**values), json=body, headers=headers
    )
    assert answer.is_success, answer.text
    assert answer.json().get("decision", "confirm") == "confirm", "every participant was willing"


def example(parameter: Json) -> Any:
    """The first example of a parameter, as it goes over the wire."""
    given = parameter["schema"].get("examples") or parameter["examples"]
    return ", ".join(given[0]) if isinstance(given[0], list) else given[0]


async def test_the_parameters_examples_are_accepted(service: Service) -> None:
    await service.register("inventory")
    for operation_id in ("listTransactions", "listHung"):
        operation = OPERATIONS[operation_id]
        query = {each["name"]: example(each) for each in operation["parameters"] if each["schema"].get("examples")}
        assert len(query) >= 3
        assert (await service.json(operation["path"], **query))["items"] == []
    assert is_id(TRANSACTION_ID)


@pytest.mark.parametrize(("operation_id", "status", "kind", "media"), list(answers()))
def test_every_answer_fits_its_schema(operation_id: str, status: str, kind: str, media: Json) -> None:
    for name, shown in media["examples"].items():
        if kind == "application/jsonl":
            item = DOCUMENT["components"]["schemas"]["AuditEntryBody"]
            assert [faults(item, json.loads(line), exact=True) for line in shown["value"].splitlines()] == [[]]
        elif kind == "text/plain":
            assert isinstance(shown["value"], str)
        else:
            assert faults(media["schema"], shown["value"], exact=kind == "application/json") == [], name
        if kind == MEDIA_TYPE:
            assert shown["value"]["type"] == f"/problems/{name}"
            assert shown["value"]["status"] == int(status)
            assert shown["value"]["title"] == CATALOGUE[name].title


def test_a_transaction_in_a_problem_is_whole() -> None:
    shown = [
        each.members["transaction"] for each in PROBLEMS.values() if each.members and "transaction" in each.members
    ]
    assert len(shown) > 5
    for transaction in shown:
        assert faults({"$ref": "#/components/schemas/TransactionBody"}, transaction, exact=True) == []


def test_a_wrong_answer_is_found() -> None:
    schema = {"$ref": "#/components/schemas/DecisionBody"}
    right = {"decision": "confirm", "recheck_in_s": 0, "finished": True, "coordinator_id": "c-1"}
    assert faults(schema, right, exact=True) == []
    assert faults(schema, right | {"decision": "maybe"}, exact=True)
    assert faults(schema, right | {"more": 1}, exact=True)
    assert faults(schema, {"decision": "confirm"}, exact=True)


async def not_there(service: Service) -> httpx.Response:
    service.participants.script("/shipping/try", [reply(404)])
    return await service.client.put("/v1/participants/shipping?check=true", json={"base_url": base_url("shipping")})


async def test_problems_have_the_members_that_their_examples_show(service: Service) -> None:
    service.participants.script("/payment/try", [reply(409, {"detail": "insufficient funds"})])
    begun = (await service.begin(BEGIN, idempotency_key='"k"')).json()
    path, admin = f"/v1/transactions/{begun['id']}", f"/v1/admin/transactions/{begun['id']}"
    resolution = {"as": "confirmed", "reason": "seen"}
    service.participants.script("/inventory/try", [reply(503, retry_after="60")])
    undecided = (await service.begin(BEGIN | {"answer_at": "record"})).json()["id"]
    provoked: dict[str, httpx.Response] = {
        "malformed": await service.client.post("/v1/transactions", content="{"),
        "invalid": await service.begin(BEGIN | {"timeout_s": 0}),
        "unknown-participant": await service.begin({"branches": [{"participant": "invoicing"}]}),
        "endpoint-not-allowed": await service.client.put(
            "/v1/participants/shipping", json={"base_url": "https://shipping.example.org"}
        ),
        "idempotency-key-conflict": await service.begin(BEGIN | {"name": "other"}, idempotency_key='"k"'),
        "transaction-cancelled": await service.begin({"branches": [{"participant": "payment"}]}),
        "already-decided": await service.client.post(f"{path}/cancel"),
        "already-finished": await service.client.post(f"{admin}/retry"),
        "branch-finished": await service.client.post(f"{admin}/branches/inventory/resolve", json=resolution),
        "unknown-branch": await service.client.post(f"{admin}/branches/none/resolve", json=resolution),
        "not-decided": await service.client.post(
            f"/v1/admin/transactions/{undecided}/branches/inventory/resolve", json=resolution
        ),
        "participant-check-failed": await not_there(service),
    }
    assert provoked.keys() == PROBLEMS.keys() - {"transaction-mixed"}
    for slug, answer in provoked.items():
        body = answer.json()
        assert body["type"] == f"/problems/{slug}"
        assert body.keys() - {"type", "title", "status", "detail"} == (PROBLEMS[slug].members or {}).keys(), slug
