"""Below a path of a proxy, which may pass it on or remove it."""

import pytest

from app.settings import OWN_SEGMENTS, Settings
from tests.harness.coordinator_app import running


@pytest.mark.parametrize("passed_on", ["", "/shop/holdfast"])
async def test_clients_follow_what_the_coordinator_says(sqlite_url: str, passed_on: str) -> None:
    async with running(sqlite_url, root_path="/shop/holdfast/") as service:
        await service.register("payment")
        begun = await service.client.post(
            f"{passed_on}/v1/transactions", json={"branches": [{"participant": "payment", "payload": {}}]}
        )
        assert begun.status_code == 201
        location = begun.headers["location"]
        assert location == f"/shop/holdfast/v1/transactions/{begun.json()['id']}"
        assert (await service.client.get(location)).json() == begun.json()
        start = (await service.client.get(f"{passed_on}/")).json()
        for link in start["links"].values():
            assert link.startswith("/shop/holdfast/")
            assert (await service.client.get(link)).status_code == 200
        document = (await service.client.get(f"{passed_on}/openapi.json")).json()
        assert document["servers"][0] == {"url": "/shop/holdfast"}


async def test_limits_and_names_are_those_of_the_path_behind_the_prefix(sqlite_url: str) -> None:
    async with running(sqlite_url, root_path="/tcc", trusted_hosts="holdfast") as service:
        foreign = {"Host": "elsewhere"}
        assert (await service.client.get("/tcc/healthz", headers=foreign)).status_code == 200
        refused = await service.client.get("/tcc/v1/participants", headers=foreign)
        assert (refused.status_code, refused.json()["type"]) == (421, "/problems/untrusted-host")
        large = {"branches": [{"participant": "payment", "payload": "p" * 100_000}]}
        answer = await service.client.post("/tcc/v1/transactions", json=large, headers={"Host": "holdfast"})
        assert answer.json()["type"] == "/problems/unknown-participant", "a begin may be larger than 64 KiB"
        for path in ("/tccv1/participants", "/tcc", "/tcc/tccv1/participants"):
            assert (await service.client.get(path, headers={"Host": "holdfast"})).status_code == 404


@pytest.mark.parametrize("path", ["holdfast", "//a", "/a//b", "/a b", "/a?b", "http://shop/a", "/ä"])
def test_a_prefix_that_is_no_path_is_refused(path: str) -> None:
    with pytest.raises(ValueError, match="such as /holdfast"):
        Settings(root_path=path)


@pytest.mark.parametrize("segment", sorted(OWN_SEGMENTS))
def test_a_prefix_that_hides_the_coordinator_s_own_paths_is_refused(segment: str) -> None:
    with pytest.raises(ValueError, match="own"):
        Settings(root_path=f"/{segment}/below")


async def test_own_paths_are_all_known(sqlite_url: str) -> None:
    async with running(sqlite_url) as service:
        document = (await service.client.get("/openapi.json")).json()
    assert {path.split("/")[1] for path in document["paths"]} <= OWN_SEGMENTS
