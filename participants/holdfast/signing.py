"""Signatures of calls, as Standard Webhooks defines them: sign and verify, with the standard library alone.

The coordinator signs each call with the participant's secret, and the participant verifies it. What is signed is the
message's id, the time of the attempt, and the body (docs/reference/protocol.md, section 4). No I/O and no clock. A
secret never appears in a representation or an error.
"""

import base64
import binascii
import hashlib
import hmac
import re
import secrets
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, Self

ID_HEADER: Final = "webhook-id"
TIMESTAMP_HEADER: Final = "webhook-timestamp"
SIGNATURE_HEADER: Final = "webhook-signature"
BAD_SIGNATURE: Final = "bad-signature"
"""The slug of the problem that a participant answers with, status 403, if it requires signatures."""

PREFIX: Final = "whsec_"
KEY_BYTES: Final = 32
"""Length of the keys that are made here."""
KEY_BYTES_MIN: Final = 24
KEY_BYTES_MAX: Final = 64
TOLERANCE_DEFAULT_S: Final = 300.0
"""How far the time of a call may be from the receiver's clock."""
SIGNATURES_MAX: Final = 8
"""How many signatures of a call are looked at."""

_VERSION: Final = "v1,"
_TIMESTAMP: Final = re.compile(r"[0-9]{1,12}")
_ID_DIGITS: Final = 32


class BadSignatureError(Exception):
    """The call isn't signed with one of the secrets, or isn't of now; the message says what is wrong."""


class Secret:
    """A key that sender and receiver share."""

    __slots__ = ("_mac", "key")

    def __init__(self, key: bytes) -> None:
        if not KEY_BYTES_MIN <= len(key) <= KEY_BYTES_MAX:
            raise ValueError(f"a secret must have {KEY_BYTES_MIN} to {KEY_BYTES_MAX} bytes, not {len(key)}")
        self.key: Final = key
        self._mac: Final = hmac.new(key, digestmod=hashlib.sha256)

    @classmethod
    def generate(cls) -> Self:
        """A new, random secret."""
        return cls(secrets.token_bytes(KEY_BYTES))

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse `whsec_<base64>`. Raises ValueError with a message that doesn't contain the text."""
        if not text.startswith(PREFIX):
            raise ValueError(f"a secret must begin with {PREFIX}")
        try:
            key = base64.b64decode(text.removeprefix(PREFIX), validate=True)
        except (binascii.Error, ValueError):
            raise ValueError(f"a secret must be {PREFIX} and base64; copy all of it") from None
        return cls(key)

    @property
    def text(self) -> str:
        """The form in which it is handed out."""
        return PREFIX + base64.b64encode(self.key).decode("ascii")

    def __repr__(self) -> str:
        return "Secret(…)"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and hmac.compare_digest(self.key, other.key)

    def __hash__(self) -> int:
        return hash(self.key)

    def signature(self, head: bytes, body: bytes) -> str:
        """The signature of `id.timestamp.` and the body."""
        mac = self._mac.copy()
        mac.update(head)
        mac.update(body)
        return _VERSION + base64.b64encode(mac.digest()).decode("ascii")


def message_id(transaction_id: str, branch: str, operation: str) -> str:
    """The same for all attempts at a call. A hash, because the id must hold no dot, and names of branches may."""
    identity = "\n".join((transaction_id, branch, operation))
    return f"msg_{hashlib.sha256(identity.encode('utf-8', 'surrogatepass')).hexdigest()[:_ID_DIGITS]}"


def signed_headers(secrets: Iterable[Secret], message_id: str, timestamp: int, body: bytes) -> dict[str, str]:
    """The headers of a call: one signature for each secret. `timestamp` is in seconds since the epoch."""
    head = f"{message_id}.{timestamp}.".encode()
    return {
        ID_HEADER: message_id,
        TIMESTAMP_HEADER: str(timestamp),
        SIGNATURE_HEADER: " ".join([secret.signature(head, body) for secret in secrets]),
    }


def verify(
    secrets: Sequence[Secret],
    headers: Mapping[str, str],
    body: bytes,
    *,
    now: float,
    tolerance_s: float = TOLERANCE_DEFAULT_S,
) -> None:
    """Return if one of the secrets signed this call, not longer than `tolerance_s` from `now`.

    Raises BadSignatureError. Takes the same time whichever secret it is, and however much of a signature is right. The
    names of `headers` are in lower case, or found in any case.
    """
    id_, timestamp, signatures = (headers.get(name, "") for name in (ID_HEADER, TIMESTAMP_HEADER, SIGNATURE_HEADER))
    for name, value in ((ID_HEADER, id_), (TIMESTAMP_HEADER, timestamp), (SIGNATURE_HEADER, signatures)):
        if not value:
            raise BadSignatureError(f"the call has no {name} header; give the participant a secret at the coordinator")
    if not _TIMESTAMP.fullmatch(timestamp):
        raise BadSignatureError(f"{TIMESTAMP_HEADER} is not a whole number of seconds since the epoch")
    head = f"{id_}.{timestamp}.".encode("utf-8", "surrogatepass")
    given = [each.encode("utf-8", "surrogatepass") for each in signatures.split(" ")[:SIGNATURES_MAX]]
    matches = False
    for secret in secrets:
        expected = secret.signature(head, body).encode("ascii")
        for signature in given:
            matches |= hmac.compare_digest(expected, signature)
    if not matches:
        raise BadSignatureError("no signature of the call was made with a secret of this participant")
    skew_s = now - int(timestamp)
    if abs(skew_s) > tolerance_s:
        where = "behind" if skew_s > 0 else "ahead of"
        raise BadSignatureError(
            f"the call was signed {abs(skew_s):.0f} s {where} this service's clock, and {tolerance_s:g} s are "
            "tolerated; it is an old call sent again, or the clocks differ"
        )
