"""Whether two requests to begin a transaction are the same request, as an idempotency key demands.

Equal bytes are the same request. Otherwise their envelopes must be equal, and their payloads must be equal JSON values
in which no digit is lost. Pure; comparing payloads takes time, so it isn't for an event loop.
"""

import base64
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from holdfast.json_text import JsonText, same

_FORM: Final = "2"
"""The first part of an identity's text. Before version 0.2 it was a hash of the whole request, with rounded numbers."""
_DIGEST_BYTES: Final = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """The identity of a request. `text` is what is recorded, `earlier` computes what version 0.1 recorded."""

    text: str
    payloads: tuple[JsonText, ...] = ()
    earlier: Callable[[], str] = lambda: ""

    def is_surely(self, recorded: str | None) -> bool:
        """Whether `recorded` comes from a request of equal bytes."""
        return recorded == self.text

    def is_same(self, recorded: str | None, payloads: Sequence[JsonText]) -> bool:
        """Whether `recorded` comes from the same request; `payloads` are those that were recorded with it."""
        if recorded is None or self.is_surely(recorded):
            return recorded is not None
        if not recorded.startswith(f"{_FORM}:"):
            return recorded == self.earlier()
        return _envelope(recorded) == _envelope(self.text) and all(
            same(one, other) for one, other in zip(self.payloads, payloads, strict=True)
        )


def identity_of(body: bytes, envelope: str, payloads: Sequence[JsonText], *, earlier: Callable[[], str]) -> Identity:
    """The identity of a request that was sent as `body`; `envelope` is its canonical form without the payloads."""
    text = f"{_FORM}:{_digest(body)}:{_digest(envelope.encode())}"
    return Identity(text=text, payloads=tuple(payloads), earlier=earlier)


def _envelope(text: str) -> str:
    return text.rpartition(":")[2]


def _digest(content: bytes) -> str:
    digest = hashlib.blake2b(content, digest_size=_DIGEST_BYTES).digest()
    return base64.urlsafe_b64encode(digest).decode().rstrip("=")
