"""GET /v1/transactions: filters, and paging to the end without gaps or duplicates."""

import base64
import itertools
import json
from typing import Any, Final

import pytest

from tests.harness.coordinator_app import Gate, Json, Service, check_problem, endpoints, reply

PATH: Final = "/v1/transactions"


async def begin(service: Service, *names: str, **request: Any) -> str:
    named: list[Json] = [{"participant": name} for name in names]
    branches = named or [{"name": "card", "endpoints": endpoints("card")}]
    answer = await service.begin({"branches": branches, **request})
    body: Json = answer.json()
    return str((body.get("transaction") or body)["id"])


async def pages(service: Service, path: str, limit: int, **query: Any) -> list[list[Json]]:
    """All pages, from the first to the end."""
    found: list[list[Json]] = []
    cursor: dict[str, str] = {}
    while True:
        page = await service.json(path, limit=limit, **query, **cursor)
        found.append(page["items"])
        if page["next_cursor"] is None:
            return found
        assert len(page["items"]) == limit
        cursor = {"cursor": page["next_cursor"]}
        assert len(found) < 100


async def ids(service: Service, **query: Any) -> list[str]:
    return [each["id"] for page in await pages(service, PATH, 3, **query) for each in page]


async def test_an_empty_list(service: Service) -> None:
    assert await service.json(PATH) == {"items": [], "next_cursor": None}


@pytest.mark.parametrize(("count", "limit"), [(1, 1), (7, 3), (6, 3), (7, 500), (7, 7), (7, 1)])
async def test_newest_first_page_by_page(service: Service, count: int, limit: int) -> None:
    begun = [await begin(service, "inventory") for _ in range(count)]
    found = await pages(service, PATH, limit)
    assert [each["id"] for page in found for each in page] == begun[::-1]
    assert len(found) == -(-count // limit)


async def test_pages_stay_as_they_were_when_new_ones_come(service: Service) -> None:
    begun = [await begin(service, "inventory") for _ in range(4)]
    first = await service.json(PATH, limit=2)
    new = await begin(service, "inventory")
    second = await service.json(PATH, limit=2, cursor=first["next_cursor"])
    assert [each["id"] for each in first["items"] + second["items"]] == begun[::-1]
    assert second["next_cursor"] is None
    assert (await service.json(PATH, limit=1))["items"][0]["id"] == new


async def test_fifty_are_listed_unless_asked_otherwise(service: Service) -> None:
    for _ in range(51):
        await begin(service, "inventory", answer_at="record")
    page = await service.json(PATH)
    assert len(page["items"]) == 50
    assert len((await service.json(PATH, cursor=page["next_cursor"]))["items"]) == 1


async def test_every_filter_and_all_combinations(service: Service) -> None:
    gate = Gate()
    service.participants.script("/payment/cancel", [reply(409, "no such hold")])
    service.participants.script("/payment/try", [reply(200), reply(409), gate])
    requests: list[dict[str, Any]] = [
        {"names": ["inventory", "payment"], "name": "order", "reference": "r-1"},
        {"names": ["payment"], "name": "order", "reference": "r-2", "answer_at": "decision"},
        {"names": ["payment"], "name": "refund", "reference": "r-1", "answer_at": "record"},
        {"names": ["inventory"], "name": "refund", "reference": "r-2"},
        {"names": [], "name": "order", "reference": "r-1"},
        {"names": []},
    ]
    for request in requests:
        await begin(service, *request.pop("names"), **request)
    await gate.reached()
    hung_id = (await service.json(PATH, name="order", reference="r-2"))["items"][0]["id"]
    await service.until(hung_id, lambda transaction: transaction["hung"])
    everything = [each for page in await pages(service, PATH, 100) for each in page]
    assert [each["phase"] for each in everything[::-1]] == (
        ["confirmed", "cancelling", "trying", "confirmed", "confirmed", "confirmed"]
    )
    values: dict[str, list[Any]] = {
        "phase": [None, "trying", "confirming", "cancelling", "confirmed", "cancelled"],
        "name": [None, "order", "refund", "none such"],
        "reference": [None, "r-1", "r-2"],
        "participant": [None, "inventory", "payment", "nobody"],
        "hung": [None, True, False],
    }
    for combination in itertools.product(*values.values()):
        query = {name: value for name, value in zip(values, combination, strict=True) if value is not None}
        expected = [each["id"] for each in everything if all(matches(each, n, v) for n, v in query.items())]
        assert [each["id"] for each in (await service.json(PATH, **query))["items"]] == expected, query
    confirmed = [each["id"] for each in everything if each["outcome"] == "confirmed"]
    assert await ids(service, outcome="confirmed") == confirmed
    assert await ids(service, outcome="cancelled") == await ids(service, outcome="mixed") == []
    assert await ids(service, participant="payment") == [each["id"] for each in everything[::-1][2::-1]]
    gate.open()


def matches(transaction: Json, name: str, value: Any) -> bool:
    if name == "participant":
        return any(branch["participant"] == value for branch in transaction["branches"])
    return bool(transaction[name] == value)


async def test_a_cursor_keeps_the_filter(service: Service) -> None:
    wanted = []
    for n in range(8):
        transaction_id = await begin(service, "inventory", name="odd" if n % 2 else "even")
        wanted += [transaction_id] if n % 2 else []
    assert await ids(service, name="odd") == wanted[::-1]


def cursor(*parts: Any) -> str:
    return base64.urlsafe_b64encode(json.dumps(parts).encode()).decode().rstrip("=")


@pytest.mark.parametrize(
    "query",
    [
        {"phase": "done"},
        {"phase": "CONFIRMED"},
        {"phase": ""},
        {"outcome": "done"},
        {"outcome": "trying"},
        {"outcome": ""},
        {"name": ""},
        {"name": "x" * 201},
        {"reference": "a\nb"},
        {"reference": "\0"},
        {"participant": "no such name!"},
        {"participant": ""},
        {"hung": "perhaps"},
        {"limit": "0"},
        {"limit": "-1"},
        {"limit": "501"},
        {"limit": "many"},
        {"limit": "1.5"},
        {"cursor": ""},
        {"cursor": "nonsense"},
        {"cursor": "x" * 201},
        {"cursor": "é"},
        {"cursor": cursor()},
        {"cursor": cursor("'; --")},
        {"cursor": cursor(1)},
        {"cursor": cursor(1.5, "01a1fc2e-20e8-7db5-893d-508caa6c9bfb")},
        {"cursor": cursor(["01a1fc2e-20e8-7db5-893d-508caa6c9bfb"])},
        {"cursor": cursor("01a1fc2e-20e8-7db5-893d-508caa6c9bfb", None)},
    ],
)
async def test_a_bad_filter_or_cursor_is_422(service: Service, query: dict[str, str]) -> None:
    document = check_problem(await service.client.get(PATH, params=query), 422, "invalid")
    assert next(iter(query)) in document["detail"]


@pytest.mark.parametrize("query", [{"phse": "trying"}, {"offset": "10"}, {"limit": "1", "Hung": "true"}])
async def test_a_filter_that_there_is_not_is_422_and_not_passed_over(service: Service, query: dict[str, str]) -> None:
    check_problem(await service.client.get(PATH, params=query), 422, "invalid")
