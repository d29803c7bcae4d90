"""The form of API keys: `hfk_`, an id of 12 characters, `_`, a secret of 32, and a checksum of 6.

The checksum tells a key that was copied wrongly from one that doesn't exist, and lets scanners find keys that leaked.
Only a hash of the secret is stored: it is random, so no slow hash is needed. Pure.
"""

import hashlib
import re
import secrets
import string
import zlib
from dataclasses import dataclass
from typing import Final, Self

PREFIX: Final = "hfk_"
ID_CHARS: Final = 12
SECRET_CHARS: Final = 32
CHECKSUM_CHARS: Final = 6
_ALPHABET: Final = string.digits + string.ascii_uppercase + string.ascii_lowercase
_FORM: Final = re.compile(
    rf"{PREFIX}([0-9A-Za-z]{{{ID_CHARS}}})_([0-9A-Za-z]{{{SECRET_CHARS}}})([0-9A-Za-z]{{{CHECKSUM_CHARS}}})"
)


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A key that somebody shows. `repr` tells its id alone."""

    id: str
    secret: str

    @classmethod
    def new(cls, id_: str | None = None) -> Self:
        """A new key, or another secret for the key with this id."""
        return cls(id_ or _random(ID_CHARS), _random(SECRET_CHARS))

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse a key in full. Raises ValueError, whose message doesn't contain the text."""
        match = _FORM.fullmatch(text)
        if match is None or match[3] != _checksum(text[:-CHECKSUM_CHARS]):
            raise ValueError("not an API key")
        return cls(match[1], match[2])

    @property
    def text(self) -> str:
        """The key in full. Show it once, and store it nowhere."""
        unsummed = f"{PREFIX}{self.id}_{self.secret}"
        return unsummed + _checksum(unsummed)

    @property
    def secret_hash(self) -> str:
        """What is stored: the SHA-256 of the secret, in hex."""
        return hashlib.sha256(self.secret.encode()).hexdigest()

    def __repr__(self) -> str:
        return f"ApiKey({self.id})"


def _random(chars: int) -> str:
    return "".join(secrets.choice(_ALPHABET) for _ in range(chars))


def _checksum(text: str) -> str:
    """The CRC32 in base 62, padded to six digits."""
    rest, digits = zlib.crc32(text.encode()), ""
    for _ in range(CHECKSUM_CHARS):
        rest, digit = divmod(rest, len(_ALPHABET))
        digits = _ALPHABET[digit] + digits
    return digits
