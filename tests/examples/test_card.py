"""The participant without the SDK keeps the rules all the same: repeated calls, a late Try, a refusal."""

from typing import Any

import httpx
import pytest

from tests.examples.examples import Load, running

CALL = {"transaction_id": "t", "branch": "card", "payload": {"amount": "99.00"}}


async def call(client: httpx.AsyncClient, path: str, **changes: Any) -> int:
    return (await client.post(path, json=CALL | changes)).status_code


@pytest.mark.parametrize(
    ("paths", "statuses"),
    [
        (["/auth", "/auth"], [200, 200]),
        (["/auth", "/capture", "/capture", "/auth"], [200, 200, 200, 200]),
        (["/auth", "/void", "/void", "/auth"], [200, 200, 200, 409]),
        (["/void", "/auth", "/capture"], [200, 409, 409]),
        (["/auth", "/capture", "/void"], [200, 200, 409]),
        (["/auth", "/void", "/capture"], [200, 200, 409]),
        (["/capture"], [409]),
    ],
)
async def test_calls_in_every_order(load: Load, paths: list[str], statuses: list[int]) -> None:
    async with running(load("card")) as client:
        assert [await call(client, path) for path in paths] == statuses


async def test_a_refusal_leaves_nothing_behind(load: Load) -> None:
    async with running(load("card")) as client:
        refused = await client.post("/auth", json=CALL | {"payload": {"amount": "500.01"}})
        assert (refused.status_code, refused.json()) == (409, {"detail": "over the limit of 500.00"})
        assert await call(client, "/capture") == 409
        assert await call(client, "/auth", payload={"amount": "500.00"}) == 200


async def test_branches_and_transactions_are_kept_apart(load: Load) -> None:
    async with running(load("card")) as client:
        assert await call(client, "/auth") == 200
        assert await call(client, "/capture", branch="other") == 409
        assert await call(client, "/capture", transaction_id="other") == 409
        assert await call(client, "/capture") == 200
