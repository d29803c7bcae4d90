"""/v1/admin/keys: created, listed, rotated, revoked; and the first key."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import select

from app.auth.api_keys import ApiKey
from app.storage import tables
from tests.harness.coordinator_app import Json, Service, check_problem, running
from tests.harness.keys import AUTHENTICATED, FIRST, issued, showing


@pytest.fixture
async def service(sqlite_url: str) -> AsyncIterator[Service]:
    async with running(sqlite_url, **AUTHENTICATED) as service:
        service.client.headers.update(showing(FIRST.text))
        yield service


async def status_with(service: Service, key: str) -> int:
    return (await service.client.get("/v1/participants", headers=showing(key))).status_code


async def test_a_key_is_shown_once_and_stored_as_a_hash(service: Service) -> None:
    created = await issued(service, "initiator", name="orders", participants=["inventory"])
    assert ApiKey.parse(created["key"]).id == created["id"]
    assert (created["owner"], created["participants"], created["endpoints"]) == ("orders", ["inventory"], False)
    listed = (await service.client.get("/v1/admin/keys")).json()["items"]
    assert [item["name"] for item in listed] == ["bootstrap", "orders"]
    assert {**listed[1], "key": created["key"]} == created
    rows = await service.parts.journal.read(lambda c: c.execute(select(tables.api_keys)).all())
    everything = f"{rows}{(await service.client.get('/v1/admin/audit')).text}"
    for key in (created["key"], FIRST.text):
        assert ApiKey.parse(key).secret not in everything


async def test_a_key_may_not_be_kept_by_caches(service: Service) -> None:
    created = await service.client.post("/v1/admin/keys", json={"name": "a", "roles": ["viewer"]})
    rotated = await service.client.post(f"/v1/admin/keys/{created.json()['id']}/rotate")
    assert {created.headers["cache-control"], rotated.headers["cache-control"]} == {"no-store"}


async def test_rotation_replaces_the_secret_and_keeps_the_rest(service: Service) -> None:
    before = await issued(service, "viewer")
    after = (await service.client.post(f"/v1/admin/keys/{before['id']}/rotate")).json()
    assert (after["id"], after["name"], after["roles"]) == (before["id"], before["name"], before["roles"])
    assert await status_with(service, after["key"]) == 200
    assert await status_with(service, before["key"]) == 401


async def test_the_secret_before_can_stay_valid_for_a_while(service: Service) -> None:
    before = await issued(service, "viewer")
    body = {"previous_ttl_s": 3600}
    after = (await service.client.post(f"/v1/admin/keys/{before['id']}/rotate", json=body)).json()
    assert [await status_with(service, key["key"]) for key in (before, after)] == [200, 200]
    ends_in = datetime.fromisoformat(after["previous_expires_at"]) - datetime.now(UTC)
    assert timedelta(minutes=59) < ends_in < timedelta(minutes=61)
    await service.client.delete(f"/v1/admin/keys/{before['id']}")
    assert [await status_with(service, key["key"]) for key in (before, after)] == [401, 401]


async def test_revoked_is_for_good(service: Service) -> None:
    key = await issued(service, "viewer")
    assert (await service.client.delete(f"/v1/admin/keys/{key['id']}")).status_code == 204
    check_problem(await service.client.delete(f"/v1/admin/keys/{key['id']}"), 404, "key-not-found")
    check_problem(await service.client.post(f"/v1/admin/keys/{key['id']}/rotate"), 404, "key-not-found")
    check_problem(await service.client.delete("/v1/admin/keys/000000000001"), 404, "key-not-found")
    listed = (await service.client.get("/v1/admin/keys")).json()["items"]
    assert listed[1]["revoked_at"] is not None


@pytest.mark.parametrize(
    ("body", "names"),
    [
        ({"roles": ["viewer"]}, "name"),
        ({"name": "a"}, "roles"),
        ({"name": "", "roles": ["viewer"]}, "name"),
        ({"name": "a\nb", "roles": ["viewer"]}, "one line"),
        ({"name": "a" * 201, "roles": ["viewer"]}, "name"),
        ({"name": "a", "roles": []}, "roles"),
        ({"name": "a", "roles": ["root"]}, "roles"),
        ({"name": "a", "roles": ["viewer", "viewer"]}, "at most once"),
        ({"name": "a", "roles": ["participant"]}, "participant"),
        ({"name": "a", "roles": ["viewer"], "participant": "inventory"}, "participant"),
        ({"name": "a", "roles": ["viewer"], "endpoints": True}, "initiator"),
        ({"name": "a", "roles": ["viewer"], "participants": []}, "initiator"),
        ({"name": "a", "roles": ["initiator"], "endpoints": "yes"}, "endpoints"),
        ({"name": "a", "roles": ["viewer"], "expires_at": "2020-01-01T00:00:00Z"}, "already"),
        ({"name": "a", "roles": ["viewer"], "expires_at": "2031-01-01T00:00:00"}, "timezone"),
        ({"name": "a", "roles": ["viewer"], "key": "hfk_"}, "key"),
    ],
)
async def test_what_can_t_be_a_key(service: Service, body: Json, names: str) -> None:
    problem = check_problem(await service.client.post("/v1/admin/keys", json=body), 422, "invalid")
    assert names in problem["detail"]
    assert len((await service.client.get("/v1/admin/keys")).json()["items"]) == 1


async def test_a_key_ends_at_its_time(service: Service) -> None:
    ends = datetime.now(UTC) + timedelta(seconds=2)
    key = await issued(service, "viewer", expires_at=ends.isoformat())
    assert await status_with(service, key["key"]) == 200
    service.parts.gate.authenticator._clock = ends.timestamp
    assert await status_with(service, key["key"]) == 401


async def test_its_use_is_noted(service: Service) -> None:
    key = await issued(service, "viewer")
    await status_with(service, key["key"])
    await service.parts.later_writes.close()
    listed = (await service.client.get("/v1/admin/keys")).json()["items"]
    assert listed[1]["last_used_at"] is not None


async def with_first(sqlite_url: str, first: ApiKey, key: str) -> int:
    async with running(sqlite_url, **AUTHENTICATED | {"bootstrap_key": first.text}) as service:
        return await status_with(service, key)


async def test_the_first_key_is_only_the_first(sqlite_url: str) -> None:
    other = ApiKey.new()
    assert await with_first(sqlite_url, FIRST, FIRST.text) == 200
    assert await with_first(sqlite_url, other, other.text) == 401
    async with running(sqlite_url, **AUTHENTICATED) as service:
        assert (
            await service.client.delete(f"/v1/admin/keys/{FIRST.id}", headers=showing(FIRST.text))
        ).status_code == 204
    assert await with_first(sqlite_url, FIRST, FIRST.text) == 401  # it never returns
    assert await with_first(sqlite_url, other, other.text) == 401


async def test_the_first_key_from_a_file(sqlite_url: str, tmp_path: Any) -> None:
    file = tmp_path / "first"
    file.write_text(FIRST.text + "\n")
    settings = {"auth": "require", "bootstrap_key_file": file}
    async with running(sqlite_url, **settings) as service:
        assert await status_with(service, FIRST.text) == 200
