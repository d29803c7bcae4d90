"""Encrypts what must not be readable in the database, with keys that are kept outside of it.

The first key encrypts, and all of them decrypt, so that keys can be replaced. Error messages contain no keys.
"""

from collections.abc import Sequence
from typing import Final

from cryptography.fernet import Fernet, InvalidToken, MultiFernet

KEYS_MAX: Final = 16
KEY_SETTINGS: Final = "HOLDFAST_SECRETS_KEY or HOLDFAST_SECRETS_KEY_FILE"


class NoKeyError(Exception):
    """There is no key to encrypt with."""


class UndecryptableError(Exception):
    """None of the keys decrypts a text from the database."""


class Encryption:
    """Encrypts and decrypts with `keys`, each of them 32 bytes in URL-safe base64."""

    def __init__(self, keys: Sequence[str] = ()) -> None:
        if len(keys) > KEYS_MAX:
            raise ValueError(f"{len(keys)} keys given, at most {KEYS_MAX}")
        made = []
        for place, key in enumerate(keys, start=1):
            try:
                made.append(Fernet(key))
            except ValueError:
                raise ValueError(
                    f"key {place} is not 32 bytes in URL-safe base64; `python -m app secrets generate-key` prints one"
                ) from None
        self._fernet = MultiFernet(made) if made else None

    @classmethod
    def parse(cls, text: str) -> "Encryption":
        """Keys separated by commas or white space, the newest first."""
        return cls(text.replace(",", " ").split())

    @staticmethod
    def new_key() -> str:
        """A new, random key."""
        return Fernet.generate_key().decode("ascii")

    @property
    def has_key(self) -> bool:
        return self._fernet is not None

    def encrypted(self, text: str) -> str:
        """Raises NoKeyError."""
        if self._fernet is None:
            raise NoKeyError
        return self._fernet.encrypt(text.encode()).decode("ascii")

    def decrypted(self, token: str) -> str:
        """Raises UndecryptableError."""
        if self._fernet is None:
            raise UndecryptableError
        try:
            return self._fernet.decrypt(token.encode()).decode()
        except (InvalidToken, UnicodeError):
            raise UndecryptableError from None
