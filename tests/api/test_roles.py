"""Who may use which route. The matrix is generated from the routes: a new one without a line here fails."""

from collections.abc import AsyncIterator, Iterator
from typing import Any, Final

import pytest
import pytest_asyncio
from fastapi.routing import APIRoute

from app.api.access import GuardedRoute
from app.auth.api_keys import ApiKey
from app.auth.roles import Role
from app.main import create_app
from app.settings import Settings
from tests.harness.coordinator_app import Service, check_problem, running
from tests.harness.keys import AUTHENTICATED, FIRST, client_of, showing

V, O, A, I, P, M = Role.VIEWER, Role.OPERATOR, Role.ADMIN, Role.INITIATOR, Role.PARTICIPANT, Role.METRICS  # noqa: E741
READ: Final = {V, O, A, I}
MATRIX: Final[dict[tuple[str, str], set[Role]]] = {
    ("POST", "/v1/transactions"): {I},
    ("GET", "/v1/transactions"): READ,
    ("GET", "/v1/transactions/{transaction_id}"): READ,
    ("GET", "/v1/transactions/{transaction_id}/calls"): READ,
    ("GET", "/v1/transactions/{transaction_id}/decision"): READ | {P},
    ("POST", "/v1/transactions/{transaction_id}/cancel"): {O, I},
    ("GET", "/v1/participants"): READ,
    ("GET", "/v1/participants/{name}"): READ,
    ("PUT", "/v1/participants/{name}"): {A},
    ("DELETE", "/v1/participants/{name}"): {A},
    ("GET", "/v1/admin/hung"): {V, O, A},
    ("POST", "/v1/admin/transactions/{transaction_id}/retry"): {O},
    ("POST", "/v1/admin/transactions/{transaction_id}/branches/{branch}/resolve"): {O},
    ("GET", "/v1/admin/audit"): {V, O, A},
    ("GET", "/v1/admin/audit/export"): {V, O, A},
    ("GET", "/v1/admin/keys"): {A},
    ("POST", "/v1/admin/participants/{name}/secret"): {A},
    ("POST", "/v1/admin/keys"): {A},
    ("POST", "/v1/admin/keys/{key_id}/rotate"): {A},
    ("DELETE", "/v1/admin/keys/{key_id}"): {A},
    ("GET", "/metrics"): {V, O, A, M},
}
OPEN: Final = {"/", "/healthz", "/readyz", "/problems/{slug}", "/docs", "/docs/{name}", "/openapi.json"}
UNKNOWN_ID: Final = "0199b2c4-5e11-7c3a-9f60-2b8d1e47a905"


def routes() -> Iterator[tuple[str, str]]:
    for route in create_app(Settings()).routes:
        path = getattr(route, "path", "")
        if isinstance(route, APIRoute) and path not in OPEN:
            assert isinstance(route, GuardedRoute), f"{path} is not guarded"
            yield from ((method, path) for method in route.methods or ())


ROUTES: Final = sorted(routes())


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def guarded(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[dict[Any, Any]]:
    """A coordinator that requires keys, and a client for each role."""
    database_url = f"sqlite:///{tmp_path_factory.mktemp('roles') / 'holdfast.db'}"
    async with running(database_url, **AUTHENTICATED) as service:
        clients: dict[Any, Any] = {
            role: await client_of(service, role.value, **({"participant": "inventory"} if role is P else {}))
            for role in Role
        }
        yield {**clients, "nobody": service.client}
        for client in clients.values():
            await client.aclose()


def filled(path: str) -> str:
    return path.format(transaction_id=UNKNOWN_ID, name="nothing", branch="b", key_id="7Qm2xV9bKd4T")


def test_each_route_has_a_line_and_each_line_a_route() -> None:
    assert set(ROUTES) == set(MATRIX)


def test_everything_else_is_open_and_harmless() -> None:
    others = {getattr(route, "path", "") for route in create_app(Settings()).routes} - {path for _, path in ROUTES}
    assert others == OPEN


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("role", [*Role, "nobody"])
@pytest.mark.parametrize(("method", "path"), ROUTES)
async def test_each_role_on_each_route(guarded: dict[Any, Any], method: str, path: str, role: Any) -> None:
    answer = await guarded[role].request(method, filled(path), content=b"{" if method in ("POST", "PUT") else None)
    if role == "nobody":
        check_problem(answer, 401, "unauthenticated")
        assert answer.headers["www-authenticate"] == "Bearer"
    elif role in MATRIX[method, path]:
        assert answer.status_code not in (401, 403), answer.text
    else:
        body = check_problem(answer, 403, "forbidden")
        assert all(each.value in body["detail"] for each in MATRIX[method, path])


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("path", sorted(OPEN))
async def test_open_paths_need_no_key(guarded: dict[Any, Any], path: str) -> None:
    answer = await guarded["nobody"].get(path.format(slug="forbidden", name="pages.css"))
    assert answer.status_code == 200


async def test_a_wrong_key_a_revoked_one_and_none_look_the_same(sqlite_url: str) -> None:
    async with running(sqlite_url, **AUTHENTICATED) as service:
        created = await service.client.post(
            "/v1/admin/keys", json={"name": "gone", "roles": ["admin"]}, headers=showing(FIRST.text)
        )
        gone = created.json()
        deleted = await service.client.delete(f"/v1/admin/keys/{gone['id']}", headers=showing(FIRST.text))
        assert deleted.status_code == 204
        wrong_secret = ApiKey(FIRST.id, "1" * 32).text
        shown = [{}, showing(gone["key"]), showing(wrong_secret), showing(ApiKey.new().text), {"Authorization": "x"}]
        answers = [await service.client.get("/v1/participants", headers=headers) for headers in shown]
        assert len({(answer.status_code, answer.content) for answer in answers}) == 1
        check_problem(answers[0], 401, "unauthenticated")


async def test_what_is_refused_is_refused_before_it_is_read(sqlite_url: str) -> None:
    """An unknown transaction is 403, too: participants read a 404 as cancel."""
    async with running(sqlite_url, **AUTHENTICATED) as service:
        metrics = await client_of(service, "metrics")
        check_problem(await metrics.get(f"/v1/transactions/{UNKNOWN_ID}/decision"), 403, "forbidden")
        check_problem(await metrics.post("/v1/transactions", content=b"\xff"), 403, "forbidden")
        await metrics.aclose()


async def test_accept_counts_and_refuses_nothing(sqlite_url: str) -> None:
    async with running(sqlite_url, **AUTHENTICATED | {"auth": "accept"}) as service:
        viewer = await client_of(service, "viewer")
        await service.register("inventory")
        begun = await service.begin({"branches": [{"participant": "inventory"}]})
        assert begun.status_code == 201
        assert (await viewer.post("/v1/admin/keys", json={"name": "x", "roles": ["viewer"]})).status_code == 201
        assert (await service.client.get("/v1/admin/hung", headers=showing("hfk_nonsense"))).status_code == 200
        text = (await viewer.get("/metrics")).text
        assert "holdfast_requests_unauthenticated_total 3.0" in text
        assert "holdfast_requests_forbidden_total 1.0" in text
        assert (await viewer.get("/v1/admin/audit", params={"outcome": "denied"})).json()["items"] == []
        await viewer.aclose()


async def test_none_looks_at_no_key(sqlite_url: str) -> None:
    async with running(sqlite_url, auth="none") as service:
        answer = await service.client.get("/v1/participants", headers=showing("hfk_nonsense"))
        assert answer.status_code == 200


@pytest.mark.parametrize(
    ("headers", "may"),
    [
        ({}, True),
        ({"Sec-Fetch-Site": "same-origin"}, True),
        ({"Sec-Fetch-Site": "same-origin", "Origin": "http://elsewhere.example"}, True),
        ({"Sec-Fetch-Site": "cross-site"}, False),
        ({"Sec-Fetch-Site": "same-site"}, False),
        ({"Sec-Fetch-Site": "none"}, False),
        ({"Origin": "http://localhost"}, True),
        ({"Origin": "http://elsewhere.example"}, False),
        ({"Origin": "null"}, False),
        ({"Origin": "https://localhost"}, False),
    ],
)
@pytest.mark.parametrize("auth", ["require", "accept", "none"])
async def test_a_page_of_another_site_can_t_use_the_browser_of_an_operator(
    sqlite_url: str, headers: dict[str, str], may: bool, auth: str
) -> None:
    async with running(sqlite_url, **AUTHENTICATED | {"auth": auth}) as service:
        body = {"base_url": "http://127.0.0.1:9000/inventory"}
        shown = showing(FIRST.text)
        answer = await service.client.put("/v1/participants/inventory", json=body, headers=shown | headers)
        assert (answer.status_code == 201) is may
        if not may:
            check_problem(answer, 403, "foreign-origin")
        assert (await service.client.get("/v1/participants", headers=shown | headers)).status_code == 200


async def test_the_public_url_is_the_only_origin(sqlite_url: str) -> None:
    async with running(sqlite_url, public_url="https://holdfast.example.com/base") as service:
        for origin, status in (("https://holdfast.example.com", 200), ("http://localhost", 403)):
            answer = await service.client.put(
                "/v1/participants/a", json={"base_url": "http://127.0.0.1:1"}, headers={"Origin": origin}
            )
            assert answer.status_code in (status, 201 if status == 200 else status)


async def test_a_key_may_make_so_many_requests_but_every_inquiry(sqlite_url: str) -> None:
    async with running(sqlite_url, **AUTHENTICATED | {"rate_per_key": 3}) as service:
        service.parts.gate._rate_limit._elapsed_s = lambda: 0.0
        viewer = await client_of(service, "viewer")
        statuses = [(await viewer.get("/v1/participants")).status_code for _ in range(5)]
        assert statuses == [200, 200, 200, 429, 429]
        limited = await viewer.get("/v1/participants")
        check_problem(limited, 429, "rate-limited")
        assert limited.headers["retry-after"] == "1"
        check_problem(await viewer.get(f"/v1/transactions/{UNKNOWN_ID}/decision"), 404, "unknown-transaction")
        await viewer.aclose()


async def test_a_look_up_that_fails_is_503_and_never_401(service_without_database: Service) -> None:
    answer = await service_without_database.client.get("/v1/participants", headers=showing(FIRST.text))
    check_problem(answer, 503, "unavailable")


@pytest.fixture
async def service_without_database(sqlite_url: str) -> AsyncIterator[Service]:
    async with running(sqlite_url, **AUTHENTICATED) as service:
        await service.parts.journal.close()
        yield service
