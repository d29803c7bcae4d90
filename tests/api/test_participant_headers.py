"""`headers` of a registry entry: each call carries them, and nobody sees them again."""

import json
import logging
from typing import Any, Final

import pytest
from pydantic import ValidationError
from sqlalchemy import text, update

from app.main import UndecryptableSecretsError
from app.settings import Settings
from app.storage import tables
from app.storage.encryption import Encryption
from app.storage.participant_headers import list_headers
from app.storage.participant_secrets import list_secrets
from tests.api.test_participant_secrets import BEGIN, KEY, NEXT_KEY, calls_of, keyed, re_encrypted, rotated
from tests.harness.coordinator_app import Json, Service, base_url, check_problem, endpoints, running

PATH: Final = "/v1/participants/inventory"
CREDENTIALS: Final = "Bearer s3cret-of-the-gateway"
HEADERS: Final[Json] = {"Authorization": CREDENTIALS, "X-Tenant": "blue"}


async def put(service: Service, **body: Any) -> Json:
    answer = await service.client.put(PATH, json={"base_url": base_url("inventory")} | body)
    assert answer.is_success, answer.text
    shown: Json = answer.json()
    assert shown.keys() == {"name", "base_url", "call_timeout_s", "concurrency_max"}
    return shown


async def sent(service: Service) -> list[tuple[str | None, str | None]]:
    return [(each.headers.get("authorization"), each.headers.get("x-tenant")) for each in await calls_of(service)]


async def test_each_call_carries_them_and_only_to_the_participant(sqlite_url: str) -> None:
    async with running(sqlite_url, **keyed()) as service:
        await put(service, headers=HEADERS)
        await service.register("payment")
        assert await sent(service) == [(CREDENTIALS, "blue")] * 2
        branches = [{"participant": "payment"}, {"name": "card", "endpoints": endpoints("card")}]
        others = await calls_of(service, {"branches": branches})
        assert not [each for each in others if "authorization" in each.headers or "x-tenant" in each.headers]
        await rotated(service)
        (tried, _) = await calls_of(service)
        assert tried.headers["authorization"] == CREDENTIALS
        assert tried.headers["webhook-signature"]


async def test_they_stay_until_they_are_replaced_removed_or_the_origin_changes(sqlite_url: str) -> None:
    async with running(sqlite_url, **keyed()) as service:
        await put(service, headers=HEADERS)
        await put(service, call_timeout_s=3)
        await put(service, base_url=base_url("moved"))
        assert await sent(service) == [(CREDENTIALS, "blue")] * 2, "the same host and port"
        await put(service, headers={"X-Tenant": "red"})
        assert await sent(service) == [(None, "red")] * 2
        await put(service, headers={})
        assert await sent(service) == [(None, None)] * 2
        for origin in ("http://127.0.0.1:9001/inventory", "http://localhost:9000/inventory", "https://127.0.0.1:9000/"):
            await put(service, headers=HEADERS)
            await put(service, base_url=origin)
            assert await sent(service) == [(None, None)] * 2
            await put(service)
            assert await sent(service) == [(None, None)] * 2, "a way back doesn't bring them back"


async def test_they_outlive_a_restart_and_end_with_the_participant(sqlite_url: str) -> None:
    async with running(sqlite_url, **keyed()) as service:
        await put(service, headers=HEADERS)
    assert await re_encrypted(sqlite_url, secrets_key=f"{NEXT_KEY},{KEY}") == 0
    async with running(sqlite_url, participants={"inventory": base_url("inventory")}, **keyed(NEXT_KEY)) as service:
        assert await sent(service) == [(CREDENTIALS, "blue")] * 2
        assert (await service.client.delete(PATH)).status_code == 204
        assert await service.parts.journal.read(list_headers) == {}
        await put(service)
        assert await sent(service) == [(None, None)] * 2
        await put(service, headers=HEADERS)
    for keys in ({}, keyed()):
        with pytest.raises(UndecryptableSecretsError, match=r"headers for participant inventory.*HOLDFAST_SECRETS_KEY"):
            async with running(sqlite_url, **keys):
                pass


async def test_a_key_is_replaced_for_secrets_and_headers_or_for_neither(sqlite_url: str) -> None:
    async with running(sqlite_url, **keyed()) as service:
        await put(service)
        await rotated(service)
        foreign = {"participant": "inventory", "headers": Encryption([Encryption.new_key()]).encrypted("{}")}
        with service.parts.journal.engine.begin() as connection:
            connection.execute(tables.participant_headers.insert().values(**foreign))
        before = await service.parts.journal.read(list_secrets)
        assert await re_encrypted(sqlite_url, secrets_key=f"{NEXT_KEY},{KEY}") == 1
        assert await service.parts.journal.read(list_secrets) == before


async def test_settings_may_have_them_if_there_is_a_key(sqlite_url: str) -> None:
    entry: Json = {"inventory": {"base_url": base_url("inventory"), "headers": HEADERS}}
    async with running(sqlite_url, participants=entry, **keyed()) as service:
        assert await sent(service) == [(CREDENTIALS, "blue")] * 2
        assert CREDENTIALS not in repr(service.parts.settings)
    with pytest.raises(ValidationError, match="inventory: headers can't be stored; set HOLDFAST_SECRETS_KEY") as caught:
        Settings(participants=entry)
    assert all(CREDENTIALS not in error["msg"] for error in caught.value.errors())


@pytest.mark.parametrize(
    ("headers", "named"),
    [
        *(({name: "x"}, name) for name in ("Host", "content-length", "Transfer-Encoding", "Connection", "TE")),
        *(({name: "x"}, name) for name in ("Tcc-Branch", "TCC-Attempt", "webhook-signature", "Webhook-Id")),
        *(({name: "x"}, name) for name in ("Content-Type", "Idempotency-Key", "traceparent", "Accept-Encoding")),
        ({"X Y": "x"}, "X Y"),
        ({"": "x"}, "no name"),
        ({"X:": "x"}, "X:"),
        ({"Ü": "x"}, "no name"),
        ({"X-A": CREDENTIALS + "\r\nHost: evil"}, "X-A"),
        ({"X-A": CREDENTIALS + "\n"}, "X-A"),
        ({"X-A": " padded"}, "X-A"),
        ({"X-A": "ümlaut"}, "X-A"),
        ({"X-A": ""}, "X-A"),
        ({"X-A": "x" * 4097}, "X-A"),
        ({"X-A": "a", "x-a": "b"}, "twice"),
        ({f"X-{n}": "x" for n in range(17)}, "at most 16"),
        ({"X-A": 7}, "headers"),
        (["X-A"], "headers"),
    ],
)
async def test_what_can_not_be_sent_is_422_and_not_quoted(sqlite_url: str, headers: Any, named: str) -> None:
    async with running(sqlite_url, **keyed()) as service:
        answer = await service.client.put(PATH, json={"base_url": base_url("inventory"), "headers": headers})
        document = check_problem(answer, 422, "invalid")
        assert named in json.dumps(document, ensure_ascii=False)
        assert CREDENTIALS not in answer.text
        check_problem(await service.client.get(PATH), 404, "participant-not-found")


async def test_without_a_key_or_before_the_upgrade_is_finished_nothing_is_registered(sqlite_url: str) -> None:
    body = {"base_url": base_url("inventory"), "headers": HEADERS}
    async with running(sqlite_url) as service:
        check_problem(await service.client.put(PATH, json=body), 409, "secrets-key-missing")
        assert (await service.client.put(PATH, json=body | {"headers": {}})).status_code == 201, "nothing to encrypt"
    async with running(sqlite_url, **keyed()) as service:
        with service.parts.journal.engine.begin() as connection:
            connection.execute(update(tables.compatibility).values(compatible_from="0001"))
        check_problem(await service.client.put(PATH, json=body), 409, "upgrade-unfinished")


async def test_nothing_that_leaves_the_coordinator_has_them(sqlite_url: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        async with running(sqlite_url, **keyed()) as service:
            shown = [json.dumps(await put(service, headers=HEADERS))]
            begun = (await service.begin(BEGIN)).json()
            paths = ["/v1/participants", PATH, "/metrics", "/openapi.json", "/v1/admin/audit"]
            paths += [f"/v1/transactions/{begun['id']}", f"/v1/transactions/{begun['id']}/calls"]
            shown += [(await service.client.get(path)).text for path in paths]
            with service.parts.journal.engine.connect() as connection:
                names = tables.metadata.tables
                shown += [str(list(connection.execute(text(f"SELECT * FROM {name}")))) for name in names]
    assert "participant.put" in " ".join(shown)
    for each in (*shown, caplog.text):
        assert CREDENTIALS not in each
