"""Whatever comes in from outside: a parser answers or raises what it documents, and nothing else."""

import json
import math
import re
import unicodedata
from typing import Any, Final

import httpx
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from app.api.pagination import cursor_of, parse_cursor
from app.api.prefer_header import parse_prefer
from app.api.request_headers import parse_idempotency_key
from app.calling.allowlist import AllowedEndpoints
from app.protocol.transaction_id import is_id
from holdfast import wire

latin = st.text(st.characters(max_codepoint=255, exclude_characters="\r\n\0"), max_size=60)
prefer = st.lists(
    st.one_of(latin, st.from_regex(r"\A(wait|Wait|WAIT) ?= ?\"?[0-9.]{1,12}\"?\Z"), st.just("respond-async"))
)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=15,
)


@given(prefer, st.sampled_from([", ", ";", ",", '"', ' ; x="', ""]))
def test_prefer(parts: list[str], separator: str) -> None:
    preferences = parse_prefer([separator.join(parts), *parts[:2]])
    assert preferences.wait_s is None or 0 <= preferences.wait_s <= 3600
    if preferences.wait_s is not None:
        applied = parse_prefer([preferences.applied["Preference-Applied"]])
        assert applied.respond_async == preferences.respond_async
        assert applied.wait_s == pytest.approx(preferences.wait_s, rel=1e-5)


@given(st.one_of(latin, latin.map(lambda text: f'"{text}"')))
def test_idempotency_key(header: str) -> None:
    try:
        key = parse_idempotency_key(header)
    except ValueError as error:
        assert str(error).startswith("Idempotency-Key")  # noqa: PT017 - most of what is drawn is no key
        return
    assert 1 <= len(key) <= 255
    assert key.isascii()
    assert key.isprintable()
    quoted = '"' + key.replace("\\", "\\\\").replace('"', '\\"') + '"'
    assert parse_idempotency_key(quoted) == key


IDS = st.uuids().map(str)


@given(st.one_of(st.text(max_size=60), st.binary(max_size=60).map(lambda b: b.decode("latin-1")), json_values.map(str)))
def test_a_cursor_that_is_none(cursor: str) -> None:
    for types in ((str,), (int,), (float, str)):
        with pytest.raises(ValueError, match="not a cursor"):
            parse_cursor(cursor, *types)


@given(json_values)
@example([1e400, "01a1fc2e-20e8-7db5-893d-508caa6c9bfb"])
@example([True])
def test_a_cursor_of_other_values(parts: Any) -> None:
    cursor = cursor_of(*parts) if isinstance(parts, list) else cursor_of(parts)
    for types in ((str,), (int,), (float, str)):
        try:
            found = parse_cursor(cursor, *types)
        except ValueError:
            continue
        assert [type(part) for part in found] == list(types)
        assert all(is_id(part) for part in found if isinstance(part, str))
        assert all(math.isfinite(part) for part in found if isinstance(part, float))


@given(st.integers(0, 2**63 - 1), st.floats(0, 1e12), IDS)
def test_a_cursor_comes_back_as_it_was(number: int, since: float, id_: str) -> None:
    assert parse_cursor(cursor_of(number), int) == (number,)
    assert parse_cursor(cursor_of(id_), str) == (id_,)
    assert parse_cursor(cursor_of(since, id_), float, str) == (since, id_)


dates = st.one_of(
    latin, st.from_regex(r"\A(Thu|x), [0-9]{1,3} (Jan|Feb|x) [0-9]{1,6} [0-9:]{8} ([+-][0-9]{1,8}|GMT|-0000)\Z")
)


@given(st.one_of(dates, st.floats().map(str), st.integers().map(str)), st.one_of(st.none(), dates))
@example("Thu, 01 Jan 2026 00:00:00 +99999999", "Thu, 01 Jan 2026 00:00:00 GMT")
@example("Thu, 01 Jan 0001 00:00:00 +2359", "Thu, 01 Jan 9999 00:00:00 -2359")
@example("9" * 5000, None)
def test_retry_after_and_hold_ttl(value: str, date: str | None) -> None:
    headers = [("Retry-After", value), ("Tcc-Hold-Ttl", value)] + ([("Date", date)] if date is not None else [])
    received = httpx.Headers([(name.encode(), text.encode("latin-1")) for name, text in headers])
    for seconds in (wire.retry_after_s(received), wire.hold_ttl_s(received)):
        assert seconds is None or (math.isfinite(seconds) and seconds >= 0)


bodies = st.one_of(
    st.binary(max_size=200),
    json_values.map(lambda value: json.dumps(value).encode()),
    st.tuples(st.sampled_from(["utf-8", "utf-16", "utf-32"]), json_values).map(
        lambda drawn: json.dumps(drawn[1], ensure_ascii=False).encode(drawn[0], "replace")
    ),
)


@given(bodies)
@example(b"[" * 100_000)
@example(b"9" * 5000)
@example(b'{"a":' * 2000 + b"1" + b"}" * 2000)
@example(b"-Infinity")
@example(b'"\\ud800"')
def test_json_text(body: bytes) -> None:
    text = wire.json_text(body)
    if text is not None:
        assert wire.json_text(text.encode()) == text


@given(st.one_of(st.text(), st.text(st.characters())))
def test_one_line_is_what_no_reader_breaks(text: str) -> None:
    controls = [character for character in text if unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp")]
    assert wire.is_one_line(text) == (controls == [])
    assert len(text.splitlines()) <= 1 or not wire.is_one_line(text)
    assert wire.is_one_line(wire.printable(text))
    if wire.is_one_line(text):
        assert wire.printable(text) == text.strip()[: wire.DETAIL_CHARS_MAX]


@given(st.one_of(bodies, json_values.map(lambda detail: json.dumps({"detail": detail}).encode())))
def test_refusal_detail(body: bytes) -> None:
    detail = wire.refusal_detail(body)
    assert len(detail) <= wire.DETAIL_CHARS_MAX
    assert wire.is_one_line(detail)
    detail.encode()


ALLOWED: Final = AllowedEndpoints.parse(
    "http://localhost:*, http://127.0.0.1:*, http://[::1]:*, https://*.internal:443"
)
hosts = st.sampled_from(
    ["localhost", "127.0.0.1", "[::1]", "a.internal", "evil.example", "[::ffff:7f00:1]", "0", "127.1"]
)
glue = st.sampled_from(
    ["@", "\\", "/", "//", "#", "?", ":", "%2f", "%40", "%00", ".", ";", "\t", " ", "\u3002", "[", "]"]
)
tricks = st.tuples(
    st.sampled_from(["http://", "https://", "http:", "HTTP://", "//", "ftp://", "http:/\\", "http:///"]),
    st.lists(st.one_of(hosts, glue, st.sampled_from(["80", "443", "0", "65536", "user:pw"])), max_size=6),
).map(lambda drawn: drawn[0] + "".join(drawn[1]))


@settings(max_examples=400)
@given(st.one_of(tricks, st.text(max_size=40), st.text(max_size=20).map(lambda text: f"http://{text}.internal/")))
@example("http://127.0.0.1@evil.example/")
@example("http://127.0.0.1:80@evil.example/")
@example("http://evil.example\\@127.0.0.1/")
@example("http://evil.example#@127.0.0.1/")
@example("http://evil.example?@127.0.0.1/")
@example("http://127.0.0.1.evil.example/")
@example("http://①②⑦.0.0.1/")
@example("http://evil.example%00.internal/")
@example("https://evil.example%2f.internal/")
@example("http://[::1%25eth0]/")
@example("http://[::1].evil.example/")
@example("http://0x7f.1/")
@example("http://127.0.0.1:0/")
@example("http://127.0.0.1:080/")
@example("http://xn--lclhost-8xa/")
@example("http://xn--a/")
def test_no_url_slips_through_the_allow_list(url: str) -> None:
    for fault in (ALLOWED.fault(url), ALLOWED.base_fault(url)):
        if fault is not None:
            assert isinstance(fault, str)
            continue
        parsed = httpx.URL(url)  # what is admitted is what is called
        assert parsed.host in ("localhost", "127.0.0.1", "::1") or parsed.host.endswith(".internal")
        assert not parsed.userinfo
        authority = url.split("//", 1)[1].split("/", 1)[0].split("?", 1)[0]
        host = re.sub(r":\d*$", "", authority).lower()
        assert host in ("localhost", "127.0.0.1", "[::1]") or host.endswith(".internal")
        assert all(c.isalnum() or c in ".-_:[]" for c in authority)


@given(st.text(max_size=60))
@example("http://")
@example("http://[::1")
@example("http://a:99999999")
def test_an_allow_list_that_is_none(text: str) -> None:
    try:
        allowed = AllowedEndpoints.parse(text)
    except ValueError as error:
        assert "HOLDFAST_ALLOWED_ENDPOINTS" in str(error)  # noqa: PT017 - most of what is drawn is no list
        return
    assert allowed.fault("http://evil.example/") is not None or "*" in text or "evil.example" in text
