"""The settings of docs/reference/protocol.md, section 6, and the allow-list of URLs."""

from pathlib import Path
from typing import Any, Final

import pytest
from pydantic import ValidationError
from sqlalchemy.exc import ArgumentError

from app.calling.allowlist import AllowedEndpoints
from app.settings import Settings
from app.storage.engines import make_engine, normal_url
from holdfast.client import WAIT_S

DEFAULTS: Final[dict[str, Any]] = {
    "database_url": "sqlite:///holdfast.db",
    "host": "127.0.0.1",
    "port": 8000,
    "participants": {},
    "timeout_default_s": 30,
    "timeout_max_s": 2_592_000,
    "wait_default_s": 60,
    "call_timeout_s": 5,
    "retry_base_s": 0.2,
    "retry_cap_s": 60,
    "hold_margin_s": 30,
    "hung_attempts": 5,
    "hung_after_s": 60,
    "branches_max": 64,
    "body_max_bytes": 1_048_576,
    "response_max_bytes": 65_536,
    "inflight_max": 10_000,
    "retention_days": 30,
    "export_directory": None,
}


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in Settings.model_fields:
        monkeypatch.delenv(f"HOLDFAST_{name.upper()}", raising=False)


def test_defaults_are_those_of_the_contract() -> None:
    assert {name: getattr(Settings(), name) for name in DEFAULTS} == DEFAULTS
    allowed = Settings().allowed
    for url in ("http://localhost", "http://127.0.0.1:9000/x?y=1", "https://[::1]:1/", "HTTPS://LOCALHOST:9/"):
        assert allowed.fault(url) is None, url
    for url in ("http://example.org", "http://10.0.0.1", "http://127.0.0.2", "http://[::2]", "http://localhost.evil"):
        assert "HOLDFAST_ALLOWED_ENDPOINTS" in (allowed.fault(url) or ""), url


def test_a_begin_waits_by_default_until_a_transaction_that_times_out_is_decided() -> None:
    settings = Settings()
    assert min(settings.wait_default_s, WAIT_S) > settings.timeout_default_s + settings.call_timeout_s


@pytest.mark.parametrize("name", [name for name in DEFAULTS if name != "participants"])
def test_every_setting_is_read_from_the_environment(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    value = {"database_url": "postgresql://h/d", "host": "::1", "timeout_default_s": 7.0, "retry_base_s": 7.0}
    value["export_directory"] = Path("exports")
    wanted = value.get(name, 2048)
    monkeypatch.setenv(f"HOLDFAST_{name.upper()}", str(wanted))
    if name in ("branches_max", "wait_default_s"):
        monkeypatch.setenv(f"HOLDFAST_{name.upper()}", "7")
        wanted = 7
    assert getattr(Settings(), name) == wanted


def test_participants_are_base_urls_or_bodies(monkeypatch: pytest.MonkeyPatch) -> None:
    text = '{"a": "http://127.0.0.1:1", "b": {"base_url": "http://localhost/b", "call_timeout_s": 2}}'
    monkeypatch.setenv("HOLDFAST_PARTICIPANTS", text)
    a, b = Settings().participants.values()
    assert (a.base_url, a.call_timeout_s, a.concurrency_max) == ("http://127.0.0.1:1", None, 64)
    assert (b.base_url, b.call_timeout_s) == ("http://localhost/b", 2)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PORT", "-1"),
        ("PORT", "65536"),
        ("CALL_TIMEOUT_S", "0"),
        ("CALL_TIMEOUT_S", "inf"),
        ("RETRY_BASE_S", "nan"),
        ("RETRY_CAP_S", "0.1"),
        ("TIMEOUT_MAX_S", "29"),
        ("TIMEOUT_MAX_S", "200000000001"),
        ("TIMEOUT_MAX_S", "1e300"),
        ("TIMEOUT_MAX_S", "inf"),
        ("TIMEOUT_DEFAULT_S", "2592001"),
        ("HUNG_ATTEMPTS", "0"),
        ("BRANCHES_MAX", "1001"),
        ("BODY_MAX_BYTES", "1 MiB"),
        ("INFLIGHT_MAX", "0"),
        ("WAIT_DEFAULT_S", "-1"),
        ("RETENTION_DAYS", "-1"),
        ("RETENTION_DAYS", "inf"),
        ("ALLOWED_ENDPOINTS", "localhost:80"),
        ("PARTICIPANTS", "not JSON"),
        ("PARTICIPANTS", '["http://127.0.0.1"]'),
        ("PARTICIPANTS", '{"a b": "http://127.0.0.1"}'),
        ("PARTICIPANTS", '{"a": {"url": "http://127.0.0.1"}}'),
        ("PARTICIPANTS", '{"a": "http://example.org"}'),
        ("PARTICIPANTS", '{"a": "http://127.0.0.1/?q"}'),
        ("PARTICIPANTS", '{"a": 1}'),
    ],
)
def test_what_is_not_valid_is_refused(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"HOLDFAST_{name}", value)
    with pytest.raises(ValidationError) as refused:
        Settings()
    named = {str(error["loc"][0]).upper() for error in refused.value.errors() if error["loc"]}
    assert name in named or f"HOLDFAST_{name}" in str(refused.value)


@pytest.mark.parametrize(
    ("text", "admitted", "refused"),
    [
        ("", [], ["http://localhost", "http://127.0.0.1"]),
        ("http://a", ["http://a", "http://a:80/x"], ["http://a:81", "https://a", "http://b"]),
        ("https://a/", ["https://a:443"], ["https://a:80", "http://a:443"]),
        ("http://*.shop.internal:*", ["http://x.y.shop.internal:1"], ["http://shop.internal", "http://evil-shop.internal"]),
        ("http://10.1.*.*:*", ["http://10.1.2.3"], ["http://10.2.1.1", "http://10.1.2.3.evil.org", "http://10.1.evil"]),
        ("http://*:80", ["http://anything", "http://1.2.3.4"], ["http://anything:81"]),
        ("http://[fe80::*]:*", ["http://[fe80::1]:5"], ["http://[fe81::1]"]),
        ("http://A.Example", ["http://a.EXAMPLE"], []),
        ("http://xn--bcher-kva.example", ["http://XN--Bcher-kva.example/tcc"], ["http://bücher.example", "http://xn--a"]),
        ("http://*.internal", ["http://xn--p1ai.internal", "http://xn--a.internal", "http://xn--.internal"], ["http://xn--"]),
        (" http://a , https://b ", ["http://a", "https://b"], ["https://a"]),
    ],
)  # fmt: skip
def test_the_allow_list(text: str, admitted: list[str], refused: list[str]) -> None:
    allowed = AllowedEndpoints.parse(text)
    assert {url: allowed.fault(url) for url in admitted} == dict.fromkeys(admitted)
    assert all(allowed.fault(url) for url in refused)


@pytest.mark.parametrize(
    "text", ["a", "http://", "ftp://a", "http://a:b", "http://a/b", "http://a?b", "http://u@a", "*"]
)
def test_an_allow_list_that_can_not_be_read(text: str) -> None:
    with pytest.raises(ValueError, match="HOLDFAST_ALLOWED_ENDPOINTS"):
        AllowedEndpoints.parse(text)


@pytest.mark.parametrize(
    "url",
    [
        "http://u@localhost", "http://u:p@localhost", "http://localhost#x", "http://localhost:0", "http://localhost:65536",
        "http://localhost\\@x", "http://loc alhost", "http://lócalhost", "http://localhost%2eevil", "http://local\nhost",
        "localhost", "http:localhost", "http:/localhost", "///localhost", "http://" + "a" * 2000, "http://[::1", "",
    ],
)  # fmt: skip
def test_a_url_that_is_none(url: str) -> None:
    assert AllowedEndpoints.parse("http://*:*").fault(url)


@pytest.mark.parametrize(
    "url",
    ["", "holdfast.db", "postgresql://u:se@cret:x@h/d", "postgresql://u:p@h:port/d", "postgresql://u:p@[::/d", "x://"],
)
def test_a_database_url_that_is_none(url: str) -> None:
    with pytest.raises((ValueError, ArgumentError)) as caught:
        normal_url(url)
    assert "cret" not in str(caught.value)
    assert isinstance(caught.value, ArgumentError) or "HOLDFAST_DATABASE_URL" in str(caught.value)


def test_an_option_that_the_driver_does_not_have_is_named() -> None:
    engine = make_engine("mysql://nobody:secret@127.0.0.1:1/none?colour=red")
    with pytest.raises(ValueError, match=r"HOLDFAST_DATABASE_URL: .*colour"):
        engine.connect()
