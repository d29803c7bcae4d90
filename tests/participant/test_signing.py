"""Signatures by themselves: what is signed, what counts as signed, and that no secret shows."""

import base64
import hmac
from typing import Any, Final

import pytest

from holdfast.signing import (
    ID_HEADER,
    SIGNATURE_HEADER,
    SIGNATURES_MAX,
    TIMESTAMP_HEADER,
    BadSignatureError,
    Secret,
    message_id,
    signed_headers,
    verify,
)

NOW: Final = 1_800_000_000.0
BODY: Final = b'{"transaction_id":"t-1","branch":"seats","operation":"try","payload":{"quantity":2}}'
ID: Final = message_id("t-1", "seats", "try")
MINE: Final = Secret(b"m" * 32)
OTHER: Final = Secret(b"o" * 32)


def signed(*secrets: Secret, at: float = NOW) -> dict[str, str]:
    return signed_headers(secrets or (MINE,), ID, int(at), BODY)


def test_the_standards_own_example() -> None:
    """From the specification, "Signature scheme"; a secret of 24 bytes."""
    secret = Secret.parse("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    headers = signed_headers([secret], "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}')
    assert headers[SIGNATURE_HEADER] == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def test_what_is_signed_is_verified_and_an_id_has_no_dot() -> None:
    verify([OTHER, MINE], signed(), BODY, now=NOW)
    assert ID.startswith("msg_")
    assert "." not in message_id("t.1", "a.b", "try")
    ids = {message_id(t, b, o) for t in ("t", "t2") for b in ("a", "a.b") for o in ("try", "confirm")}
    assert len(ids) == 8
    assert message_id("t-1", "seats", "try") == ID, "the same for each attempt"


def test_while_a_secret_is_replaced_either_is_enough() -> None:
    both = signed(MINE, OTHER)
    assert both[SIGNATURE_HEADER].count("v1,") == 2
    for known in ([MINE], [OTHER], [OTHER, MINE]):
        verify(known, both, BODY, now=NOW)


@pytest.mark.parametrize("skew_s", [-300, -1, 0, 1, 300])
def test_a_clock_may_differ_by_the_tolerance(skew_s: float) -> None:
    verify([MINE], signed(), BODY, now=NOW + skew_s, tolerance_s=300)
    with pytest.raises(BadSignatureError):
        verify([MINE], signed(), BODY, now=NOW + skew_s, tolerance_s=abs(skew_s) - 1)


@pytest.mark.parametrize(("skew_s", "said"), [(302, "302 s behind"), (-302, "302 s ahead of"), (1e9, "behind")])
def test_a_call_of_another_time_is_refused_and_the_skew_named(skew_s: float, said: str) -> None:
    with pytest.raises(BadSignatureError, match=said) as caught:
        verify([MINE], signed(), BODY, now=NOW + skew_s, tolerance_s=300)
    assert "300 s are tolerated" in str(caught.value)


_RIGHT: Final = signed()[SIGNATURE_HEADER]
FORGED: Final[dict[str, Any]] = {
    "another secret's": signed(OTHER),
    "no headers": {},
    "no id": {ID_HEADER: ""},
    "no time": {TIMESTAMP_HEADER: ""},
    "no signature": {SIGNATURE_HEADER: ""},
    "another id": {ID_HEADER: message_id("t-2", "seats", "try")},
    "another time": {TIMESTAMP_HEADER: str(int(NOW) + 1)},
    "time with a fraction": {TIMESTAMP_HEADER: f"{int(NOW)}.0"},
    "time with a sign": {TIMESTAMP_HEADER: f"+{int(NOW)}"},
    "time with spaces": {TIMESTAMP_HEADER: f" {int(NOW)}"},
    "time in other digits": {TIMESTAMP_HEADER: "١٨٠٠٠٠٠٠٠٠"},
    "time without end": {TIMESTAMP_HEADER: "9" * 5000},
    "no number": {TIMESTAMP_HEADER: "NaN"},
    "truncated": {SIGNATURE_HEADER: _RIGHT[:-2]},
    "cut in half": {SIGNATURE_HEADER: _RIGHT[: len(_RIGHT) // 2]},
    "its version alone": {SIGNATURE_HEADER: "v1,"},
    "without a version": {SIGNATURE_HEADER: _RIGHT.removeprefix("v1,")},
    "another version": {SIGNATURE_HEADER: _RIGHT.replace("v1,", "v1a,")},
    "upper case": {SIGNATURE_HEADER: _RIGHT.upper()},
    "with a comma more": {SIGNATURE_HEADER: f"{_RIGHT},"},
    "not ASCII": {SIGNATURE_HEADER: "v1,ü\udcff"},
    "after too many others": {SIGNATURE_HEADER: "v1,AAAA " * SIGNATURES_MAX + _RIGHT},
}


@pytest.mark.parametrize("changes", FORGED.values(), ids=FORGED.keys())
def test_a_forged_call_is_refused(changes: dict[str, str]) -> None:
    headers = signed() | changes if changes else {}
    with pytest.raises(BadSignatureError) as caught:
        verify([MINE], headers, BODY, now=NOW)
    assert MINE.text not in str(caught.value)
    assert _RIGHT.removeprefix("v1,") not in str(caught.value), "the right signature is no answer to a wrong one"


@pytest.mark.parametrize("body", [b"", BODY + b" ", BODY[:-1], BODY.replace(b"2", b"3")])
def test_another_body_is_refused(body: bytes) -> None:
    with pytest.raises(BadSignatureError):
        verify([MINE], signed(), body, now=NOW)


def test_without_secrets_nothing_is_verified() -> None:
    with pytest.raises(BadSignatureError):
        verify([], signed(), BODY, now=NOW)


def test_every_secret_is_compared_with_every_signature(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that the time tells nothing about which one was right."""
    compared: list[bytes] = []
    compare = hmac.compare_digest

    def noted(one: bytes, other: bytes) -> bool:
        compared.append(other)
        return compare(one, other)

    monkeypatch.setattr("holdfast.signing.hmac.compare_digest", noted)
    verify([MINE, OTHER], signed(MINE, OTHER), BODY, now=NOW)
    assert len(compared) == 4


def test_a_secret_is_read_as_it_is_written() -> None:
    made = Secret.generate()
    assert Secret.parse(made.text) == made != Secret.generate()
    assert len(made.key) == 32
    assert made.text not in f"{made!r} {made} {[made]}"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "whsec_",
        "topsecret" + base64.b64encode(b"k" * 32).decode(),
        "WHSEC_" + base64.b64encode(b"k" * 32).decode(),
        "whsec_" + base64.b64encode(b"k" * 23).decode(),
        "whsec_" + base64.b64encode(b"k" * 65).decode(),
        "whsec_" + base64.b64encode(b"k" * 32).decode()[:-2],
        "whsec_" + base64.b64encode(b"k" * 32).decode() + "\n",
        "whsec_" + "ü" * 32,
    ],
)
def test_what_is_no_secret_is_refused_and_not_quoted(text: str) -> None:
    with pytest.raises(ValueError, match="a secret must") as caught:
        Secret.parse(text)
    assert text.removeprefix("whsec_")[:12] not in str(caught.value) or len(text) < 12
