"""When two requests to begin are the same request: equal bytes, or equal envelopes around equal JSON values."""

import pytest

from app.protocol.identity import Identity, identity_of
from holdfast.json_text import JsonText

BODY = b'{"name": "order", "branches": [{"payload": 1.0}, {"payload": {"a": 1, "b": 2}}]}'
ENVELOPE = '{"name":"order"}'
PAYLOADS = (JsonText("1.0"), JsonText('{"a":1,"b":2}'))
EARLIER = "what version 0.1 recorded"


def identity(body: bytes = BODY, envelope: str = ENVELOPE, payloads: tuple[JsonText, ...] = PAYLOADS) -> Identity:
    return identity_of(body, envelope, payloads, earlier=lambda: EARLIER)


def test_its_text_is_in_databases_and_must_not_change() -> None:
    """Or each key that is repeated across an upgrade would be a conflict."""
    assert identity().text == "2:Ha7m7BMPQfJdL1E0QDrYRHCV730:WGcECXN9elRWihWSqJYGkautQno"


def test_equal_bytes_are_the_same_request_and_no_payload_is_compared() -> None:
    assert identity().is_surely(identity().text)
    assert identity().is_same(identity().text, ())


def test_other_bytes_are_the_same_if_the_envelope_and_all_payloads_are() -> None:
    recorded = identity(body=b"in another spelling").text
    assert not identity().is_surely(recorded)
    assert identity().is_same(recorded, PAYLOADS)
    assert identity().is_same(recorded, (JsonText("1"), JsonText('{"b": 2, "a": 1e0}')))


@pytest.mark.parametrize("at", [0, 1])
def test_another_payload_is_another_request(at: int) -> None:
    payloads = list(PAYLOADS)
    payloads[at] = JsonText("3")
    assert not identity().is_same(identity(body=b"in another spelling").text, payloads)


def test_another_envelope_is_another_request() -> None:
    assert not identity().is_same(identity(b"other", '{"name":"refund"}').text, PAYLOADS)


def test_without_a_record_nothing_is_the_same() -> None:
    assert not identity().is_same(None, PAYLOADS)


def test_what_version_0_1_recorded_is_recognised() -> None:
    assert identity().is_same(EARLIER, ())
    assert not identity().is_same("another hash", ())
