"""The library of Standard Webhooks as the oracle: what either side signs, the other verifies."""

import time
from datetime import UTC, datetime
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st
from standardwebhooks import Webhook
from standardwebhooks.webhooks import WebhookVerificationError

from holdfast.signing import (
    ID_HEADER,
    SIGNATURE_HEADER,
    TIMESTAMP_HEADER,
    BadSignatureError,
    Secret,
    message_id,
    signed_headers,
    verify,
)

secrets: Final = st.binary(min_size=24, max_size=64).map(Secret)
bodies: Final = st.text(st.characters(exclude_categories=["Cs"])).map(str.encode)
names: Final = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=64)
values: Final = st.text(st.characters(max_codepoint=0xFF), max_size=80)


@given(st.lists(secrets, min_size=1, max_size=3), bodies, names, names)
def test_the_library_verifies_what_we_sign(made: list[Secret], body: bytes, transaction: str, branch: str) -> None:
    headers = signed_headers(made, message_id(transaction, branch, "try"), int(time.time()), body)
    for secret in made:
        Webhook(secret.text).verify(body, headers, json_parse=False)
    with pytest.raises(WebhookVerificationError):
        Webhook(Secret.generate().text).verify(body, headers, json_parse=False)


@given(secrets, bodies, st.integers(0, 4_000_000_000))
def test_we_verify_what_the_library_signs(secret: Secret, body: bytes, at: int) -> None:
    signature = Webhook(secret.text).sign("msg_1", datetime.fromtimestamp(at, UTC), body.decode())
    headers = {ID_HEADER: "msg_1", TIMESTAMP_HEADER: str(at), SIGNATURE_HEADER: signature}
    verify([secret], headers, body, now=at)
    with pytest.raises(BadSignatureError):
        verify([Secret.generate()], headers, body, now=at)


@given(secrets, bodies, values, values | st.integers().map(str), values | values.map(lambda text: f"v1,{text}"))
def test_whatever_arrives_is_refused_and_nothing_else_happens(
    secret: Secret, body: bytes, id_: str, timestamp: str, signature: str
) -> None:
    headers = {ID_HEADER: id_, TIMESTAMP_HEADER: timestamp, SIGNATURE_HEADER: signature}
    with pytest.raises(BadSignatureError):
        verify([secret], headers, body, now=1.8e9)


@given(secrets, bodies.filter(bool), st.data())
def test_one_bit_is_enough_to_be_refused(secret: Secret, body: bytes, data: st.DataObject) -> None:
    headers = signed_headers([secret], "msg_1", 1_800_000_000, body)
    place = data.draw(st.integers(0, len(body) - 1))
    changed = bytearray(body)
    changed[place] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(BadSignatureError):
        verify([secret], headers, bytes(changed), now=1.8e9)
