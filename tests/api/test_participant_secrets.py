"""POST /v1/admin/participants/{name}/secret: calls are signed with what it answers, and nobody else learns it."""

import asyncio
import json
import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import httpx
import pytest
from pydantic import ValidationError
from sqlalchemy import text, update
from standardwebhooks import Webhook
from standardwebhooks.webhooks import WebhookVerificationError

from app.__main__ import main
from app.main import UndecryptableSecretsError
from app.settings import Settings
from app.storage import tables
from app.storage.encryption import Encryption
from app.storage.migrations import migrate
from tests.harness.coordinator_app import (
    Json,
    Received,
    Service,
    base_url,
    check_problem,
    endpoints,
    reply,
    running,
    until,
)
from tests.harness.coordinator_process import CoordinatorProcess

KEY: Final = "a2V5IG9mIHRoZSB0ZXN0cywgb2YgMzIgYnl0ZXMgISE="
NEXT_KEY: Final = "bmV4dCBrZXkgb2YgdGhlIHRlc3RzLCAzMiBieXRlcyE="
PATH: Final = "/v1/admin/participants/inventory/secret"
BEGIN: Final[Json] = {"branches": [{"participant": "inventory", "payload": {"sku": "ä"}}]}


def keyed(*keys: str) -> dict[str, Any]:
    return {"secrets_key": ",".join(keys or (KEY,))}


async def rotated(service: Service, **body: Any) -> Json:
    answer = await service.client.post(PATH, json=body) if body else await service.client.post(PATH)
    assert answer.status_code == 201, answer.text
    assert answer.headers["cache-control"] == "no-store"
    document: Json = answer.json()
    assert document.keys() == {"secret", "previous_expires_at"}
    return document


async def calls_of(service: Service, request: Json = BEGIN) -> list[Received]:
    service.participants.received.clear()
    begun = (await service.begin(request)).json()
    assert (await service.until_finished(begun["id"]))["outcome"] == "confirmed"
    return list(service.participants.received)


def is_signed_with(secret: str, calls: Sequence[Received]) -> bool:
    """Whether the library accepts all of these calls; fails if it accepts some of them."""
    accepted = set()
    for call in calls:
        try:
            Webhook(secret).verify(call.content, dict(call.headers), json_parse=False)
            accepted.add(True)
        except WebhookVerificationError:
            accepted.add(False)
    assert len(accepted) == 1
    return accepted.pop()


def signatures(call: Received) -> int:
    return len(call.headers["webhook-signature"].split(" "))


async def test_every_call_is_signed_from_the_first_secret_on(sqlite_url: str) -> None:
    async with running(sqlite_url, **keyed()) as service:
        await service.register("inventory", "payment")
        assert not [name for call in await calls_of(service) for name in call.headers if name.startswith("webhook-")]
        made = await rotated(service)
        assert re.fullmatch(r"whsec_[A-Za-z0-9+/]{43}=", made["secret"])
        assert made["previous_expires_at"] is None
        service.participants.script("/inventory/confirm", [reply(503), reply(200)])
        calls = await calls_of(service)
        assert [call.path for call in calls] == ["/inventory/try", "/inventory/confirm", "/inventory/confirm"]
        assert is_signed_with(made["secret"], calls)
        ids = [call.headers["webhook-id"] for call in calls]
        assert ids[0] != ids[1] == ids[2], "an id is a call's, whatever the attempt"
        assert all("." not in id_ and id_.startswith("msg_") for id_ in ids)
        other = await calls_of(service, {"branches": [{"participant": "payment"}]})
        assert "webhook-signature" not in other[0].headers


async def test_while_a_secret_is_replaced_calls_carry_both_signatures(sqlite_url: str) -> None:
    now = [1_000_000.0]
    async with running(sqlite_url, clock=lambda: now[0], **keyed()) as service:
        await service.register("inventory")
        first = (await rotated(service))["secret"]
        second = await rotated(service, previous_ttl_s=3600)
        assert second["previous_expires_at"].startswith("1970-01-12T14:4")
        calls = await calls_of(service)
        assert is_signed_with(first, calls)
        assert is_signed_with(second["secret"], calls)
        now[0] += 3601
        calls = await calls_of(service)
        assert is_signed_with(second["secret"], calls)
        assert not is_signed_with(first, calls)


async def test_the_secret_before_stays_valid_for_a_day_by_default(sqlite_url: str) -> None:
    async with running(sqlite_url, clock=lambda: 1_000_000.0, **keyed()) as service:
        await service.register("inventory")
        await rotated(service)
        assert (await rotated(service))["previous_expires_at"].startswith("1970-01-13T13:4")


async def test_with_zero_all_earlier_secrets_end_at_once(sqlite_url: str) -> None:
    async with running(sqlite_url, **keyed()) as service:
        await service.register("inventory")
        earlier = [(await rotated(service))["secret"], (await rotated(service))["secret"]]
        stolen = await rotated(service, previous_ttl_s=0)
        assert stolen["previous_expires_at"] is None
        calls = await calls_of(service)
        assert is_signed_with(stolen["secret"], calls)
        assert not any(is_signed_with(secret, calls) for secret in earlier)


async def test_a_rotation_whose_answer_was_lost_can_be_repeated(sqlite_url: str) -> None:
    """The participant has the first secret; nobody has the second."""
    async with running(sqlite_url, **keyed()) as service:
        await service.register("inventory")
        made = [(await rotated(service))["secret"] for _ in range(4)]
        calls = await calls_of(service)
        assert [is_signed_with(secret, calls) for secret in made] == [False, True, True, True]
        assert signatures(calls[0]) == 3, "no more, however often it is rotated"


async def test_secrets_outlive_restarts_and_new_registrations_and_end_with_the_participant(sqlite_url: str) -> None:
    entry = {"inventory": {"base_url": base_url("inventory")}}
    async with running(sqlite_url, participants=entry, **keyed()) as service:
        secret = (await rotated(service))["secret"]
    async with running(sqlite_url, participants=entry, **keyed()) as service:
        await service.register("inventory", call_timeout_s=3)
        assert is_signed_with(secret, await calls_of(service))
        assert (await service.client.delete("/v1/participants/inventory")).status_code == 204
        await service.register("inventory")
        assert "webhook-signature" not in (await calls_of(service))[0].headers, "another participant of that name"


async def test_other_replicas_sign_with_it_too(postgres_url: str) -> None:
    migrate(postgres_url)
    async with running(postgres_url, **keyed()) as one, running(postgres_url, **keyed()) as other:
        await one.register("inventory")
        secret = (await rotated(one))["secret"]

        async def is_known() -> bool:
            return other.parts.registry.get("inventory") is not None and "webhook-signature" in (
                (await calls_of(other))[0].headers
            )

        await until(is_known)
        assert is_signed_with(secret, await calls_of(other))


def main_with(database_url: str, *arguments: str, **settings: str) -> int:
    """Run a command. It has an event loop of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOLDFAST_DATABASE_URL", database_url)
        for name, value in settings.items():
            patch.setenv(f"HOLDFAST_{name.upper()}", value)
        return main([*arguments])


async def test_the_record_says_who_rotated_and_not_what(sqlite_url: str) -> None:
    async with running(sqlite_url, **keyed()) as service:
        await service.register("inventory")
        secret = (await rotated(service))["secret"]
        await service.client.post("/v1/admin/participants/nobody/secret")
        (entry,) = (await service.json("/v1/admin/audit", action="participant.rotate_secret"))["items"]
        assert (entry["target"], entry["outcome"]) == ("participants/inventory", "done")
        assert secret not in json.dumps(await service.json("/v1/admin/audit"))


# --- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ttl", [-1, "60", True, None, 2_592_001, 1e308])
async def test_a_bad_ttl_is_422_and_changes_nothing(sqlite_url: str, ttl: Any) -> None:
    async with running(sqlite_url, **keyed()) as service:
        await service.register("inventory")
        secret = (await rotated(service))["secret"]
        document = check_problem(await service.client.post(PATH, json={"previous_ttl_s": ttl}), 422, "invalid")
        assert document["errors"][0]["at"] == "body/previous_ttl_s"
        check_problem(await service.client.post(PATH, json={"ttl": 60}), 422, "invalid")
        check_problem(await service.client.post(PATH, content="{"), 400, "malformed")
        calls = await calls_of(service)
        assert is_signed_with(secret, calls)
        assert signatures(calls[0]) == 1


async def test_nobody_registered_is_404(sqlite_url: str) -> None:
    async with running(sqlite_url, **keyed()) as service:
        answer = await service.client.post("/v1/admin/participants/nobody/secret")
        check_problem(answer, 404, "participant-not-found")


async def test_without_a_key_it_says_what_to_set(service: Service) -> None:
    document = check_problem(await service.client.post(PATH), 409, "secrets-key-missing")
    assert "HOLDFAST_SECRETS_KEY" in document["detail"]
    assert "webhook-signature" not in (await calls_of(service))[0].headers


async def test_while_replicas_of_the_version_before_may_run_there_are_no_secrets(sqlite_url: str) -> None:
    """They would go on to call unsigned, and a participant that requires signatures would refuse them."""
    async with running(sqlite_url, **keyed()) as service:
        await service.register("inventory")
        with service.parts.journal.engine.begin() as connection:
            connection.execute(update(tables.compatibility).values(compatible_from="0001"))
        document = check_problem(await service.client.post(PATH), 409, "upgrade-unfinished")
        assert "migrate --finish" in document["detail"]


@pytest.mark.parametrize("keys", [{}, keyed(NEXT_KEY)])
async def test_a_start_that_cannot_decrypt_refuses_and_says_what_to_set(
    sqlite_url: str, keys: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    async with running(sqlite_url, **keyed()) as service:
        await service.register("inventory")
        secret = (await rotated(service))["secret"]
    with pytest.raises(UndecryptableSecretsError, match=r"participant inventory.*HOLDFAST_SECRETS_KEY"):
        async with running(sqlite_url, **keys):
            pass
    assert secret not in capsys.readouterr().err


async def test_serve_says_so_in_one_line(sqlite_url: str) -> None:
    async with running(sqlite_url, **keyed()) as service:
        await service.register("inventory")
        await rotated(service)
    for keys in ({}, {"HOLDFAST_SECRETS_KEY": NEXT_KEY}):
        process = CoordinatorProcess({"HOLDFAST_DATABASE_URL": sqlite_url} | keys)
        process.launch()
        assert await asyncio.to_thread(process.wait_end) == 1, process.log
        (line,) = [line for line in process.lines if line.startswith("holdfast: ")]
        assert "can't be decrypted" in line
        assert "HOLDFAST_SECRETS_KEY" in line
        assert "Traceback" not in process.log


async def test_a_replica_without_the_key_sends_nothing_rather_than_unsigned_calls(
    sqlite_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with running(sqlite_url) as service:
        await service.register("inventory")
        row = {"participant": "inventory", "current": Encryption([KEY]).encrypted("whsec_x"), "previous": "[]"}
        with service.parts.journal.engine.begin() as connection:  # another replica, which has the key
            connection.execute(tables.participant_secrets.insert().values(created_at=1.0, **row))
        await service.parts.registry.refresh()
        begun = (await service.begin(BEGIN | {"answer_at": "record"})).json()
        found = await service.until(begun["id"], lambda transaction: transaction["branches"][0]["last_error"])
        assert "can't be decrypted" in found["branches"][0]["last_error"]
        assert "HOLDFAST_SECRETS_KEY" in found["branches"][0]["last_error"]
        assert service.participants.received == []
    assert "event=secret_undecryptable participant=inventory" in caplog.text


@pytest.mark.parametrize("key", ["x", "a2V5", KEY[:-2], KEY + ",short", "-" * 44, "ü" * 44])
def test_what_is_no_key_is_refused_and_not_quoted(key: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValidationError, match=r"key \d is not 32 bytes") as caught:
        Settings(secrets_key=key)
    assert "generate-key" in str(caught.value)
    assert main_with("sqlite://", "serve", secrets_key=key) == 1
    said = capsys.readouterr().err
    assert "HOLDFAST_SECRETS_KEY: key" in said
    assert key not in said or len(key) < 6


def test_keys_come_from_a_file_or_a_variable_and_not_from_both(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text(f"{NEXT_KEY}\n{KEY}\n")
    token = Encryption([KEY]).encrypted("whsec_x")
    assert Settings(secrets_key_file=path).encryption.decrypted(token) == "whsec_x"
    assert Settings(secrets_key=f"{NEXT_KEY}, {KEY}").encryption.decrypted(token) == "whsec_x"
    with pytest.raises(ValidationError, match="both set"):
        Settings(secrets_key=KEY, secrets_key_file=path)
    with pytest.raises(ValidationError, match="HOLDFAST_SECRETS_KEY_FILE: can't read"):
        Settings(secrets_key_file=tmp_path / "none")
    assert KEY not in repr(Settings(secrets_key=KEY))


# --- keys are replaced -----------------------------------------------------------------------------------------------


async def re_encrypted(database_url: str, **settings: str) -> int:
    return await asyncio.to_thread(main_with, database_url, "secrets", "re-encrypt", **settings)


async def test_a_key_is_replaced_without_losing_a_secret(sqlite_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    async with running(sqlite_url, **keyed()) as service:
        await service.register("inventory")
        made = [(await rotated(service))["secret"] for _ in range(2)]
    assert await re_encrypted(sqlite_url, secrets_key=f"{NEXT_KEY},{KEY}") == 0
    async with running(sqlite_url, **keyed(NEXT_KEY)) as service:
        calls = await calls_of(service)
        assert all(is_signed_with(secret, calls) for secret in made)
    assert await re_encrypted(sqlite_url, secrets_key=KEY) == 1
    assert "nothing was changed; add the key" in capsys.readouterr().err
    assert await re_encrypted(sqlite_url) == 1
    assert "there is no key" in capsys.readouterr().err


def test_a_key_can_be_made(capsys: pytest.CaptureFixture[str]) -> None:
    made = set()
    for _ in range(2):
        assert main_with("sqlite://", "secrets", "generate-key") == 0
        made.add(capsys.readouterr().out.strip())
    assert len(made) == 2
    for key in made:
        Encryption([key])


# --- secrets stay secret ---------------------------------------------------------------------------------------------


async def test_nothing_that_leaves_the_coordinator_has_the_secret_or_the_key(
    sqlite_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG):
        async with running(sqlite_url, **keyed()) as service:
            await service.register("inventory")
            secret = (await rotated(service))["secret"]
            service.participants.script("/inventory/try", [reply(500, "no"), reply(200, {})])
            transaction = (await service.begin(BEGIN)).json()
            paths = ["/v1/participants", "/v1/participants/inventory", "/metrics", "/openapi.json", "/v1/admin/hung"]
            paths += [f"/v1/transactions/{transaction['id']}{suffix}" for suffix in ("", "/calls", "/decision")]
            said = [(await service.client.get(path)).text for path in paths]
            with service.parts.journal.engine.connect() as connection:
                rows = [str(list(connection.execute(text(f"SELECT * FROM {name}")))) for name in tables.metadata.tables]
            said += [*rows, json.dumps(transaction), repr(service.parts.settings), caplog.text]
    assert "inventory" in " ".join(rows)
    for text_ in said:
        for hidden in (secret, secret.removeprefix("whsec_"), KEY):
            assert hidden not in text_


# --- endpoints aren't signed -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:9000/inventory/try",
        "http://127.0.0.1:9000/inventory",
        "http://127.0.0.1:9000/inventory/deeper/try",
        "http://127.0.0.1:9000//inventory/try",
        "http://127.0.0.1:9000/other/../inventory/try",
        "http://127.0.0.1:9000/%69nventory/try",
        "http://localhost:9000/inventory/try",
        "http://LOCALHOST:9000/inventory/try?x=1",
        "http://[::1]:9000/inventory/try",
    ],
)
async def test_endpoints_must_not_lie_under_a_registered_base_url(service: Service, url: str) -> None:
    for operation in ("try", "confirm", "cancel"):
        branch = {"name": "card", "endpoints": endpoints("card") | {operation: url}}
        document = check_problem(await service.begin({"branches": [branch]}), 422, "endpoint-not-allowed")
        assert "participant inventory" in document["detail"]
        assert document["branch"] == "card"
    assert service.participants.received == []


async def test_endpoints_beside_a_base_url_are_called_unsigned(sqlite_url: str) -> None:
    async with running(sqlite_url, **keyed()) as service:
        await service.register("inventory")
        await rotated(service)
        calls = await calls_of(service, {"branches": [{"name": "card", "endpoints": endpoints("inventory2")}]})
        assert [call.path for call in calls] == ["/inventory2/try", "/inventory2/confirm"]
        assert "webhook-signature" not in httpx.Headers(calls[0].headers)


async def test_a_rotation_is_in_the_log_as_in_the_record(sqlite_url: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    async with running(sqlite_url, **keyed()) as service:
        await service.register("inventory")
        await rotated(service)
    said = [each for each in caplog.messages if "action=participant.rotate_secret" in each]
    assert len(said) == 1
    assert "event=audited" in said[0]
    assert "target=participants/inventory" in said[0]
