"""The gateway, as payment sees it: repeatable by key, a key for each request, and its ledger adds up."""

from typing import Any

import httpx
import pytest

from tests.examples.examples import Load, running

TEN = {"customer": "ada", "amount_cents": 10_00}


async def call(client: httpx.AsyncClient, path: str, reference: str = "r", body: dict[str, Any] | None = None) -> int:
    key = f"{reference}:{path}"
    return await call_with(client, path, key, {"reference": reference, **(body or {})})


async def call_with(client: httpx.AsyncClient, path: str, key: str, body: dict[str, Any]) -> int:
    return (await client.post(path, json=body, headers={"Idempotency-Key": key})).status_code


async def card(client: httpx.AsyncClient) -> tuple[int, int, int]:
    found = (await client.get("/balances")).json()["cards"][0]
    return found["available"], found["authorised"], found["captured"]


@pytest.mark.parametrize(
    ("paths", "statuses", "end"),
    [
        (["/authorise", "/authorise"], [201, 201], (990_00, 10_00, 0)),
        (["/authorise", "/capture", "/capture", "/authorise"], [201, 200, 200, 201], (990_00, 0, 10_00)),
        (["/authorise", "/void", "/void", "/authorise"], [201, 200, 200, 409], (1000_00, 0, 0)),
        (["/authorise", "/capture", "/void"], [201, 200, 409], (990_00, 0, 10_00)),
        (["/authorise", "/void", "/capture"], [201, 200, 409], (1000_00, 0, 0)),
        (["/void", "/capture"], [200, 409], (1000_00, 0, 0)),
    ],
)
async def test_every_call_is_repeatable(
    load: Load, paths: list[str], statuses: list[int], end: tuple[int, int, int]
) -> None:
    async with running(load("gateway")) as client:
        bodies = [TEN if path == "/authorise" else None for path in paths]
        assert [await call(client, path, body=body) for path, body in zip(paths, bodies, strict=True)] == statuses
        assert await card(client) == end


async def test_what_the_card_does_not_cover_is_declined_each_time(load: Load) -> None:
    async with running(load("gateway")) as client:
        too_much = {"customer": "ada", "amount_cents": 1000_01}
        assert [await call(client, "/authorise", body=too_much) for _ in range(2)] == [402, 402]
        assert await call(client, "/authorise", "other", {"customer": "nobody", "amount_cents": 1}) == 402
        assert await call(client, "/capture") == 409
        assert await card(client) == (1000_00, 0, 0)


async def test_a_key_belongs_to_one_request(load: Load) -> None:
    async with running(load("gateway")) as client:
        assert await call_with(client, "/authorise", "k", {"reference": "r", **TEN}) == 201
        for path in ("/capture", "/void"):
            assert await call_with(client, path, "k", {"reference": "r"}) == 422
        assert await card(client) == (990_00, 10_00, 0)


async def test_a_reference_belongs_to_one_amount(load: Load) -> None:
    async with running(load("gateway")) as client:
        assert await call(client, "/authorise", body=TEN) == 201
        assert await call(client, "/authorise", body={**TEN, "amount_cents": 1}) == 422
        assert await card(client) == (990_00, 10_00, 0)
