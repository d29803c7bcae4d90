"""The statements on secrets, on each database; and two connections that rotate one at the same moment."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import Engine
from sqlalchemy.exc import OperationalError

from app.storage.participant_secrets import NewSecret, StoredSecret, list_secrets, re_encrypt, rotate_secrets
from app.storage.participants import (
    RegisteredParticipant,
    Registration,
    Removal,
    delete_participants,
    put_participants,
)
from tests.harness.databases import engine_with_tables
from tests.harness.transactions import found, written


@pytest.fixture
def engine(database_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Engine]:
    """Connections that wait a second for a lock, to a database in which car and hotel are registered."""
    for limit in ("LOCK_WAIT_MAX_S", "SQLITE_BUSY_S"):
        monkeypatch.setattr(f"app.storage.engines.{limit}", 1)
    made = engine_with_tables(database_url)
    for name in ("car", "hotel"):
        entry = RegisteredParticipant(name=name, base_url="http://old", call_timeout_s=None, concurrency_max=1)
        written(made, put_participants, Registration(participant=entry))
    yield made
    made.dispose()


def new(secret: str, *, at: float = 10.0, until: float | None = 20.0, participant: str = "car") -> NewSecret:
    return NewSecret(participant=participant, current=secret, previous_expires_at=until, created_at=at)


def stored(secret: str, *previous: tuple[str, float], participant: str = "car") -> StoredSecret:
    return StoredSecret(participant=participant, current=secret, previous=previous)


def test_each_secret_follows_the_one_before(engine: Engine) -> None:
    assert written(engine, rotate_secrets, new("a"), new("h", participant="hotel")) == [
        stored("a"),
        stored("h", participant="hotel"),
    ]
    assert written(engine, rotate_secrets, new("b", until=20.0)) == [stored("b", ("a", 20.0))]
    assert written(engine, rotate_secrets, new("c", at=11.0, until=30.0)) == [stored("c", ("b", 30.0), ("a", 20.0))]
    assert written(engine, rotate_secrets, new("d", at=21.0, until=40.0)) == [stored("d", ("c", 40.0), ("b", 30.0))]
    assert written(engine, rotate_secrets, new("e", at=35.0, until=50.0)) == [stored("e", ("d", 50.0), ("c", 40.0))]
    assert written(engine, rotate_secrets, new("f", at=36.0, until=None)) == [stored("f")]
    assert found(engine, list_secrets) == [stored("f"), stored("h", participant="hotel")]


def test_nobody_registered_gets_no_secret_and_who_is_removed_loses_it(engine: Engine) -> None:
    assert written(engine, rotate_secrets, new("a", participant="nobody"), new("b")) == [None, stored("b")]
    assert written(engine, delete_participants, Removal(name="car")) == [True]
    assert found(engine, list_secrets) == []


def test_rotations_come_one_after_the_other(engine: Engine) -> None:
    written(engine, rotate_secrets, new("a"))
    with engine.execution_options(holdfast_writes=True).connect() as connection, connection.begin():
        rotate_secrets(connection, [new("b")])
        with ThreadPoolExecutor(1) as pool, pytest.raises(OperationalError):
            pool.submit(written, engine, rotate_secrets, new("c")).result(timeout=30)
    assert written(engine, rotate_secrets, new("c")) == [stored("c", ("b", 20.0), ("a", 20.0))]


def test_everything_is_encrypted_anew(engine: Engine) -> None:
    written(engine, rotate_secrets, new("a"), new("b"), new("h", participant="hotel"))
    assert written(engine, re_encrypt, str.upper) == [2]
    assert found(engine, list_secrets) == [stored("B", ("A", 20.0)), stored("H", participant="hotel")]


def test_what_can_not_be_decrypted_changes_nothing(engine: Engine) -> None:
    written(engine, rotate_secrets, new("a"), new("h", participant="hotel"))

    def changed(token: str) -> str:
        if token == "h":
            raise ValueError("no key")
        return token.upper()

    with pytest.raises(ValueError, match="no key"):
        written(engine, re_encrypt, changed)
    assert found(engine, list_secrets) == [stored("a"), stored("h", participant="hotel")]
