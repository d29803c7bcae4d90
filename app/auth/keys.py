"""Creates, rotates and revokes API keys, each with its entry in the record. Doesn't check who asks."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import msgspec

from app.auth.api_keys import ApiKey
from app.auth.audit_log import log_entry
from app.auth.key_request import KeyRequest
from app.auth.roles import Role
from app.protocol.messages import Asker
from app.storage import api_keys
from app.storage.api_keys import NewKey, Revocation, Rotation, StoredKey
from app.storage.audit import AuditEntry
from app.storage.errors import DuplicateKeyError
from app.storage.group_commit import Journal

log = logging.getLogger(__name__)

BOOTSTRAP: Final = "bootstrap"
"""The name of the first key."""
SETTINGS: Final = Asker(actor="settings")
COMMAND_LINE: Final = Asker(actor="command line")


@dataclass(frozen=True, slots=True)
class Issued:
    """A key as it is stored, and as it is shown this once."""

    stored: StoredKey
    shown: ApiKey


class Keys:
    """The keys in the database of `journal`. `clock` gives seconds since the epoch."""

    def __init__(self, journal: Journal, clock: Callable[[], float]) -> None:
        self._journal = journal
        self._clock = clock

    async def create(self, request: KeyRequest, asker: Asker) -> Issued:
        """Create a key. Raises ValueError for one that has ended already."""
        shown = ApiKey.new()
        stored = request.key(shown, self._clock())
        audited = self._created(stored, asker)
        await self._journal.write(api_keys.create_keys, NewKey(key=stored, audited=audited))
        log_entry(audited)
        return Issued(stored, shown)

    async def list(self) -> list[StoredKey]:
        """All keys, the oldest first, revoked ones too."""
        return await self._journal.read(api_keys.list_keys)

    async def rotate(self, key_id: str, previous_ttl_s: float, asker: Asker) -> Issued | None:
        """Another secret for a key; the present one ends `previous_ttl_s` seconds later. None if unknown or revoked."""
        shown = ApiKey.new(key_id)
        rotation = Rotation(
            id=key_id,
            secret_hash=shown.secret_hash,
            previous_until=self._clock() + previous_ttl_s,
            audited=self._entry("key.rotate", key_id, asker),
        )
        stored = await self._journal.write(api_keys.rotate_keys, rotation)
        if stored is None:
            return None
        log_entry(rotation.audited)
        return Issued(stored, shown)

    async def revoke(self, key_id: str, asker: Asker) -> bool:
        """End a key for good; False if it is unknown or revoked already."""
        revocation = Revocation(id=key_id, at=self._clock(), audited=self._entry("key.revoke", key_id, asker))
        is_revoked = await self._journal.write(api_keys.revoke_keys, revocation)
        if is_revoked:
            log_entry(revocation.audited)
        return is_revoked

    async def bootstrap(self, shown: ApiKey) -> None:
        """Make this the first key, an admin's, if no key has ever existed."""
        stored = KeyRequest(name=BOOTSTRAP, roles=[Role.ADMIN]).key(shown, self._clock())
        new = NewKey(key=stored, audited=self._created(stored, SETTINGS), only_first=True)
        try:
            is_new = await self._journal.write(api_keys.create_keys, new)
        except DuplicateKeyError:  # another replica created it at the same moment
            return
        if is_new:
            log_entry(new.audited)
            log.warning(
                "event=bootstrapped key_id=%s The first key is an admin's. Create others, and revoke it.", shown.id
            )

    def _created(self, stored: StoredKey, asker: Asker) -> AuditEntry:
        after = {
            "name": stored.name,
            "roles": stored.roles,
            "owner": stored.owner,
            "participant": stored.participant,
            "participants": stored.participants,
            "endpoints": stored.endpoints,
        }
        return self._entry("key.create", stored.id, asker, msgspec.json.encode(after).decode())

    def _entry(self, action: str, key_id: str, asker: Asker, after: str | None = None) -> AuditEntry:
        return AuditEntry(at=self._clock(), asker=asker, action=action, target=f"keys/{key_id}", after=after)
