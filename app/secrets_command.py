"""python -m app secrets …: the keys with which participants' secrets are encrypted in the database."""

import argparse
import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Any

from sqlalchemy import Connection

from app.settings import Settings
from app.storage.encryption import KEY_SETTINGS, Encryption, UndecryptableError
from app.storage.group_commit import Journal
from app.storage.migrations import NotMigratedError, schema_fault
from app.storage.participant_headers import re_encrypt_headers
from app.storage.participant_secrets import re_encrypt

log = logging.getLogger("holdfast")


def add_to(commands: Any) -> None:
    """Add the command to those of `python -m app`."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "secrets", help="the encryption of participants' secrets in the database"
    )
    actions = parser.add_subparsers(dest="action", required=True)
    actions.add_parser("generate-key", help="print a new key for HOLDFAST_SECRETS_KEY")
    actions.add_parser("re-encrypt", help="encrypt everything with the first key, so that the others can be removed")


def run(action: str, settings: Settings) -> int:
    """Run an action and return the exit code. Raises ValueError, NotMigratedError and DatabaseError."""
    if action == "generate-key":
        print(Encryption.new_key())
        return 0
    count = asyncio.run(_re_encrypt(settings))
    log.info("event=secrets_re_encrypted participants=%d The first key alone decrypts them now.", count)
    return 0


async def _re_encrypt(settings: Settings) -> int:
    encryption = settings.encryption
    if not encryption.has_key:
        raise ValueError(f"there is no key to encrypt with; set {KEY_SETTINGS}")

    def changed(token: str) -> str:
        return encryption.encrypted(encryption.decrypted(token))

    journal = Journal(settings.unpooled_url)
    try:
        if fault := await journal.read(schema_fault):
            raise NotMigratedError(fault)
        return await journal.write(_re_encrypt_all, changed)
    except UndecryptableError:
        raise ValueError(
            f"a secret in the database can't be decrypted, and nothing was changed; add the key that encrypted it to "
            f"{KEY_SETTINGS}"
        ) from None
    finally:
        await journal.close()


def _re_encrypt_all(connection: Connection, items: Sequence[Callable[[str], str]]) -> list[int]:
    """Secrets and headers in one database transaction: all of it or nothing."""
    counts = zip(re_encrypt(connection, items), re_encrypt_headers(connection, items), strict=True)
    return [max(pair) for pair in counts]
