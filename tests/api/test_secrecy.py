"""Nothing secret leaves: not in answers, logs, metrics, the record, exports, errors, or the database."""

import sqlite3
from pathlib import Path

import pytest

from app.auth.api_keys import ApiKey
from tests.harness.coordinator_app import running
from tests.harness.keys import AUTHENTICATED, FIRST, client_of, issued, showing

PATHS = (
    *("/v1/transactions", "/v1/participants", "/v1/admin/hung", "/v1/admin/keys", "/v1/admin/audit"),
    *("/v1/admin/audit/export", "/metrics", "/", "/docs", "/openapi.json", "/healthz", "/readyz"),
)


async def test_keys_are_nowhere_but_in_the_answer_that_creates_them(
    sqlite_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    said: list[str] = []
    first = ApiKey.new()
    async with running(sqlite_url, **AUTHENTICATED | {"bootstrap_key": first.text}) as service:
        service.client.headers.update(showing(first.text))
        keys = [first.text]
        for roles in (["viewer"], ["initiator"], ["operator"], ["admin"]):
            created = await service.client.post("/v1/admin/keys", json={"name": roles[0], "roles": roles})
            keys.append(created.json()["key"])
        rotated = await service.client.post(f"/v1/admin/keys/{ApiKey.parse(keys[1]).id}/rotate")
        keys.append(rotated.json()["key"])
        await service.register("inventory")
        for key in (*keys, keys[0][:-1], f"{keys[2]}x", keys[3].replace("hfk_", "hfk-")):
            headers = showing(key)
            begun = await service.client.post(
                "/v1/transactions", json={"branches": [{"participant": "inventory"}]}, headers=headers
            )
            said.append(begun.text)
            said.extend([(await service.client.get(path, headers=headers)).text for path in PATHS])
        await service.parts.later_writes.close()
    database = Path(sqlite_url.removeprefix("sqlite:///"))
    connection = sqlite3.connect(database)
    said += list(connection.iterdump())
    connection.close()
    said += [record.getMessage() for record in caplog.records]
    said += [repr(service.parts.settings)]
    everything = "\n".join(said)
    assert "event=audited" in everything
    assert "event=denied" in everything
    for key in keys:
        assert ApiKey.parse(key).id in everything, "what is looked at has no trace of it at all"
        assert key not in everything
        assert ApiKey.parse(key).secret not in everything


async def test_a_key_in_a_path_or_a_query_is_not_repeated(sqlite_url: str) -> None:
    async with running(sqlite_url, **AUTHENTICATED) as service:
        viewer = await client_of(service, "viewer")
        key = (await issued(service, "viewer", name="second"))["key"]
        for path in (f"/v1/transactions/{key}", f"/v1/participants/{key}", f"/v1/admin/audit?actor={key}"):
            answer = await viewer.get(path)
            assert ApiKey.parse(key).secret not in answer.text
        await viewer.aclose()
        assert (await service.client.get("/v1/admin/keys", headers=showing(FIRST.text))).status_code == 200
