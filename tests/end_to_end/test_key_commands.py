"""`python -m app keys …` on the database, and a start that says who may come in, or refuses to."""

import json
import sqlite3
from pathlib import Path

import pytest

from app.__main__ import main
from app.auth.api_keys import ApiKey


@pytest.fixture(autouse=True)
def database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "holdfast.db"
    monkeypatch.setenv("HOLDFAST_DATABASE_URL", f"sqlite:///{path}")
    return path


def printed(capsys: pytest.CaptureFixture[str], *arguments: str, status: int = 0) -> tuple[str, str]:
    assert main(["keys", *arguments]) == status
    captured = capsys.readouterr()
    return captured.out, captured.err


def test_generate_prints_a_key_and_touches_nothing(capsys: pytest.CaptureFixture[str], database: Path) -> None:
    out, _ = printed(capsys, "generate")
    assert ApiKey.parse(out.strip())
    assert not database.exists()


def test_create_list_rotate_and_revoke(capsys: pytest.CaptureFixture[str], database: Path) -> None:
    out, _ = printed(capsys, "create", "--name", "orders", "--role", "initiator", "--owner", "shop", "--allow", "seats")
    key = ApiKey.parse(out.strip())
    rotated, _ = printed(capsys, "rotate", key.id, "--previous-ttl-s", "60")
    assert ApiKey.parse(rotated.strip()).id == key.id
    assert rotated.strip() != key.text
    _, said = printed(capsys, "revoke", key.id)
    assert "revoked" in said
    (shown,) = [json.loads(line) for line in printed(capsys, "list")[0].splitlines()]
    assert (shown["name"], shown["roles"], shown["owner"], shown["participants"]) == (
        *("orders", ["initiator"], "shop"),
        ["seats"],
    )
    assert shown["revoked_at"] is not None
    with sqlite3.connect(database) as connection:
        rows = connection.execute("SELECT actor, action FROM audit ORDER BY id").fetchall()
    connection.close()
    assert rows == [("command line", action) for action in ("key.create", "key.rotate", "key.revoke")]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["create", "--name", "a", "--role", "participant"], "participant"),
        (["create", "--name", "a", "--role", "viewer", "--expires-at", "2020-01-01T00:00:00Z"], "already"),
        (["create", "--name", "a", "--role", "viewer", "--expires-at", "soon"], "datetime"),
        (["rotate", "000000000000"], "no such key"),
        (["revoke", "000000000000"], "no such key"),
        (["rotate", "000000000000", "--previous-ttl-s", "nan"], "number of seconds"),
    ],
)
def test_what_can_t_be_done_says_why(capsys: pytest.CaptureFixture[str], arguments: list[str], says: str) -> None:
    out, err = printed(capsys, *arguments, status=1)
    assert out == ""
    assert says in err


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"HOST": "0.0.0.0"}, "HOLDFAST_AUTH: must be set"),
        ({"BOOTSTRAP_KEY": "hfk_wrong"}, "HOLDFAST_BOOTSTRAP_KEY: must be a key"),
        ({"BOOTSTRAP_KEY_FILE": "/nowhere/key"}, "HOLDFAST_BOOTSTRAP_KEY_FILE: can't be read"),
        ({"BOOTSTRAP_KEY": "a", "BOOTSTRAP_KEY_FILE": "b"}, "set one of them"),
        ({"PUBLIC_URL": "holdfast.example.com"}, "HOLDFAST_PUBLIC_URL: must be a URL"),
        ({"PUBLIC_URL": "https://[::1"}, "HOLDFAST_PUBLIC_URL: must be a URL"),
        ({"AUTH": "maybe"}, "HOLDFAST_AUTH"),
    ],
)
def test_a_start_that_is_not_safe_is_refused(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    database: Path,
    settings: dict[str, str],
    says: str,
) -> None:
    for name, value in settings.items():
        monkeypatch.setenv(f"HOLDFAST_{name}", value)
    assert main(["serve"]) == 1
    said = capsys.readouterr().err
    assert says in said
    assert "hfk_wrong" not in said
    assert not database.exists()
