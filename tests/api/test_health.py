"""/healthz, /readyz, /metrics, and what the API answers when the database is not there."""

import asyncio
import math
from collections.abc import AsyncIterator

import pytest
from sqlalchemy import Connection, text

from app.main import SchemaOutdatedError
from app.storage.migrations import migrate
from tests.harness.coordinator_app import Gate, Service, check_problem, lost, reply, running, until
from tests.harness.database_server import DatabaseServer
from tests.harness.databases import on_servers


async def test_alive_and_ready(service: Service) -> None:
    assert await service.json("/healthz") == {"status": "alive"}
    assert await service.json("/readyz") == {"status": "ready"}


@pytest.mark.parametrize(
    "statement", ["DELETE FROM alembic_version", "UPDATE alembic_version SET version_num = '0001'"]
)
async def test_a_schema_that_is_not_at_head_is_not_ready(service: Service, statement: str) -> None:
    with service.parts.journal.engine.begin() as connection:
        connection.execute(text(statement))
    answer = await service.client.get("/readyz")
    assert "python -m app migrate" in check_problem(answer, 503, "schema-outdated")["detail"]
    assert int(answer.headers["retry-after"]) >= 1
    assert await service.json("/healthz") == {"status": "alive"}


async def test_every_outcome_has_a_counter_from_the_start(service: Service) -> None:
    lines = (await service.client.get("/metrics")).text.splitlines()
    for outcome in ("confirmed", "cancelled", "mixed"):
        assert f'holdfast_transactions_finished_total{{outcome="{outcome}"}} 0.0' in lines


async def test_metrics_count(service: Service) -> None:
    service.participants.script("/inventory/confirm", [lost(), reply(200)])
    service.participants.script("/payment/confirm", [reply(410)])
    await service.begin({"branches": [{"participant": "inventory"}]})
    begun = await service.begin({"branches": [{"participant": "payment"}], "answer_at": "decision"})
    await service.until(begun.json()["id"], lambda transaction: transaction["hung"])
    samples = await metrics(service)
    assert samples["holdfast_transactions_begun_total"] == 2
    assert samples['holdfast_transactions_finished_total{outcome="confirmed"}'] == 1
    assert samples["holdfast_transactions_unfinished"] == 1
    assert samples["holdfast_transactions_hung"] == 1
    assert samples["holdfast_database_up"] == 1
    labels = 'participant="inventory",operation="confirm",answer="unanswered"'
    counts = {name: value for name, value in samples.items() if name.startswith("holdfast_call_duration_seconds_count")}
    matching = [v for name, v in counts.items() if all(label in name for label in labels.split(","))]
    assert matching == [1]


async def metrics(service: Service) -> dict[str, float]:
    """Each sample by its name and labels."""
    answer = await service.client.get("/metrics")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain")
    pairs = (line.rsplit(" ", 1) for line in answer.text.splitlines() if not line.startswith("#"))
    return {name: float(value) for name, value in pairs}


@on_servers
async def test_a_database_that_is_not_migrated_is_refused(database_url: str) -> None:
    with pytest.raises(SchemaOutdatedError, match="python -m app migrate"):
        async with running(database_url):
            pass


@pytest.fixture
async def on_a_server(database_url: str) -> AsyncIterator[Service]:
    migrate(database_url)
    async with running(database_url, lease_s=1.0) as service:
        await service.register("inventory", "payment")
        yield service


@on_servers
async def test_without_the_database_everything_is_503_and_heals(
    on_a_server: Service, database_server: DatabaseServer
) -> None:
    service = on_a_server
    known = (await service.begin({"branches": [{"participant": "inventory"}]})).json()
    database_server.crash()
    request = {"branches": [{"participant": "inventory"}]}
    path = f"/v1/transactions/{known['id']}"
    calls = len(service.participants.received)
    for method, url, body in (
        ("POST", "/v1/transactions", request),
        ("GET", "/v1/transactions", None),
        ("GET", path, None),
        ("GET", f"{path}/calls", None),
        ("GET", f"{path}/decision", None),
        ("POST", f"{path}/cancel", None),
        ("GET", "/v1/admin/hung", None),
        ("POST", f"/v1/admin/transactions/{known['id']}/retry", None),
        ("PUT", "/v1/participants/shipping", {"base_url": "http://127.0.0.1:9"}),
        ("DELETE", "/v1/participants/payment", None),
        ("GET", "/readyz", None),
    ):
        answer = await service.client.request(method, url, json=body)
        check_problem(answer, 503, "unavailable")
        assert int(answer.headers["retry-after"]) >= 1
    assert await service.json("/healthz") == {"status": "alive"}
    samples = await metrics(service)
    assert samples["holdfast_database_up"] == 0
    assert samples["holdfast_transactions_begun_total"] == 1
    assert math.isnan(samples["holdfast_transactions_unfinished"])
    assert math.isnan(samples["holdfast_transactions_hung"])
    assert len(service.participants.received) == calls, "nothing is sent that is not recorded"
    database_server.start()
    await until(lambda: has_status(service, "/readyz", 200))
    samples = await metrics(service)
    assert (samples["holdfast_database_up"], samples["holdfast_transactions_unfinished"]) == (1, 0)
    assert (await service.begin(request)).status_code == 201
    assert await service.get(known["id"]) == known


@pytest.fixture
async def on_an_ordinary_account(ordinary_url: str) -> AsyncIterator[Service]:
    """MariaDB's administrators may write whatever `read_only` says."""
    migrate(ordinary_url)
    async with running(ordinary_url, lease_s=1.0) as service:
        await service.register("inventory", "payment", "unused")
        yield service


@on_servers
async def test_while_the_server_only_reads_nothing_is_ready_and_nothing_is_a_defect(
    on_an_ordinary_account: Service, database_server: DatabaseServer, caplog: pytest.LogCaptureFixture
) -> None:
    """As after a planned switchover: the old primary lives on, and keeps its connections."""
    service = on_an_ordinary_account
    gate = Gate()
    service.participants.script("/payment/try", [gate])
    body = {"branches": [{"participant": "inventory"}, {"participant": "payment"}], "timeout_s": 600}
    holding, cancelled = [(await service.begin(body, prefer="respond-async")).json()["id"] for _ in range(2)]
    await gate.reached()
    with database_server.only_reading():
        await until(lambda: is_unavailable(service, "/readyz"))
        for method, path, sent in (
            ("POST", "/v1/transactions", body),
            ("POST", f"/v1/transactions/{cancelled}/cancel", None),
            ("GET", "/v1/transactions/018f0000-0000-7000-8000-000000000000/decision", None),
            ("PUT", "/v1/participants/shipping", {"base_url": "http://127.0.0.1:9"}),
            ("DELETE", "/v1/participants/unused", None),
            ("GET", "/readyz", None),
        ):
            answer = await service.client.request(method, path, json=sent)
            check_problem(answer, 503, "unavailable")
            assert int(answer.headers["retry-after"]) >= 1
        gate.open()  # all hold, and the decision can't be saved
        await until(lambda: has_logged(caplog, f"event=save_failed transaction_id={holding}"))
    await until(lambda: has_status(service, "/readyz", 200))
    assert (await service.until_finished(holding))["outcome"] == "confirmed"
    assert not [each for each in caplog.messages if "event=broken" in each or "event=defect" in each]
    assert await service.json("/v1/admin/hung") == {"items": [], "totals": [], "next_cursor": None}


async def is_unavailable(service: Service, path: str) -> bool:
    return await has_status(service, path, 503)


async def has_status(service: Service, path: str, status: int) -> bool:
    return (await service.client.get(path)).status_code == status


async def test_those_who_ask_at_once_or_within_a_second_share_a_look(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, looks = 100.0, 0
    monkeypatch.setattr("app.api.readiness.elapsed_s", lambda: now)

    def looked_at(connection: Connection) -> str | None:
        nonlocal looks
        looks += 1
        return None

    monkeypatch.setattr("app.api.readiness.schema_fault", looked_at)
    for later, expected in ((0.0, 1), (0.9, 1), (0.2, 2), (5.0, 3)):
        now += later
        answers = await asyncio.gather(*(service.client.get("/readyz") for _ in range(5)))
        assert {answer.status_code for answer in answers} == {200}
        assert looks == expected


async def has_logged(caplog: pytest.LogCaptureFixture, text: str) -> bool:
    return any(text in each for each in caplog.messages)


@on_servers
async def test_a_database_that_goes_away_after_the_record_does_not_hide_the_record(
    on_a_server: Service, database_server: DatabaseServer
) -> None:
    service = on_a_server
    gate = Gate()
    service.participants.script("/inventory/try", [gate, reply(200)])
    waiting = asyncio.create_task(service.begin({"branches": [{"participant": "inventory"}]}))
    await gate.reached()
    database_server.crash()
    gate.open()
    begun = await waiting
    assert begun.status_code == 202, "503 would say that nothing was recorded"
    assert service.participants.paths() == ["/inventory/try"], "no Confirm before the decision is durable"
    database_server.start()

    async def finished() -> bool:
        answer = await service.client.get(begun.headers["location"])
        return answer.status_code == 200 and answer.json()["outcome"] == "confirmed"

    await until(finished)
