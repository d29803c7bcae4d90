"""Where participants are: registered ones by name, inline endpoints by their own URLs.

Each call looks its target up in memory. A change made on this replica applies at once, one made on another replica at
the next `refresh`. Makes no decisions about transactions.
"""

import asyncio
import logging
from collections.abc import Mapping
from functools import lru_cache
from typing import Final

import httpx
import msgspec
from sqlalchemy import Connection

from app.calling.allowlist import AllowedEndpoints
from app.calling.base_urls import lies_under
from app.calling.caller import CallHeaders, Target
from app.calling.signing_keys import SigningKeys
from app.protocol.messages import Call
from app.storage import participants
from app.storage.audit import AuditEntry
from app.storage.encryption import KEY_SETTINGS, Encryption, UndecryptableError
from app.storage.errors import DuplicateKeyError
from app.storage.group_commit import Journal
from app.storage.participant_headers import list_headers
from app.storage.participant_secrets import NewSecret, StoredSecret, list_secrets, rotate_secrets
from app.storage.participants import RegisteredParticipant, Registration, Removal
from holdfast.signing import Secret

log = logging.getLogger(__name__)

URLS_MAX: Final = 4096
"""Size of the cache of parsed URLs."""
SET_THE_KEY: Final = f"Set {KEY_SETTINGS} to the key that encrypted it, on every replica, and start again."
INLINE_CONCURRENCY_MAX: Final = 64
"""Maximum number of concurrent calls to the inline endpoints of one host and port."""


class Registry:
    """The registered participants, and the targets of calls."""

    def __init__(
        self, journal: Journal, *, allowed: AllowedEndpoints, encryption: Encryption, call_timeout_s: float
    ) -> None:
        self._journal = journal
        self._encryption = encryption
        self._allowed = allowed
        self._call_timeout_s = call_timeout_s
        self._participants: dict[str, RegisteredParticipant] = {}
        self._stored: dict[str, StoredSecret] = {}
        self._stored_headers: dict[str, str] = {}
        self._headers: dict[str, CallHeaders | str] = {}
        """By participant: the headers of its calls, or why they can't be used."""
        self._keys: dict[str, SigningKeys | str] = {}
        """By participant: the keys that sign its calls, or why they can't be used."""
        self._refreshing = asyncio.Lock()
        self._url = lru_cache(URLS_MAX)(self._checked_url)  # parsing a URL costs as much as a call

    async def refresh(self) -> None:
        """Reload the registry from the database."""
        async with self._refreshing:  # otherwise a slow, older read could overwrite a newer one
            registered, secrets, headers = await self._journal.read(read_registry)
            self._participants = {each.name: each for each in registered}
            self._take_headers(headers)
            self._take_secrets({each.participant: each for each in secrets})

    def all(self) -> list[RegisteredParticipant]:
        return sorted(self._participants.values(), key=lambda p: p.name)

    def get(self, name: str) -> RegisteredParticipant | None:
        return self._participants.get(name)

    def under(self, url: str) -> str | None:
        """The participant under whose base URL this valid URL lies, if there is one."""
        return next((each.name for each in self.all() if lies_under(url, each.base_url)), None)

    async def put(
        self,
        participant: RegisteredParticipant,
        audited: AuditEntry | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> bool:
        """Register or replace a participant, with this entry in the record; returns whether the name is new.

        None keeps the headers that it has, for the same origin. Raises NoKeyError.
        """
        token = headers and self._encryption.encrypted(msgspec.json.encode(headers).decode())
        registration = Registration(
            participant=participant, audited=audited, headers=None if headers is None else token or ""
        )
        try:
            is_new = await self._journal.write(participants.put_participants, registration)
        except DuplicateKeyError:  # another replica registered the same name at the same moment
            is_new = await self._journal.write(participants.put_participants, registration)
        await self.refresh()
        return is_new

    async def delete(self, name: str, audited: AuditEntry | None = None) -> bool | None:
        """Remove a participant: False if unfinished transactions need it, None if the name is unknown."""
        deleted = await self._journal.write(participants.delete_participants, Removal(name=name, audited=audited))
        await self.refresh()
        return deleted

    async def rotate_secret(
        self, name: str, *, previous_ttl_s: float, now: float, audited: AuditEntry | None = None
    ) -> tuple[Secret, float | None] | None:
        """Give a participant a new secret, with this entry in the record.

        The one that it has stays valid for `previous_ttl_s` seconds. Returns the secret and when the one before it
        expires, or None if the name is unknown. Raises NoKeyError.
        """
        secret = Secret.generate()
        new = NewSecret(
            participant=name,
            current=self._encryption.encrypted(secret.text),
            previous_expires_at=now + previous_ttl_s if previous_ttl_s else None,
            created_at=now,
            audited=audited,
        )
        stored = await self._journal.write(rotate_secrets, new)
        await self.refresh()
        if stored is None:
            return None
        return secret, stored.previous[0][1] if stored.previous else None

    def target(self, call: Call) -> Target | str:
        """Where this call goes at present, or why it can't be made."""
        branch = call.branch
        if branch.endpoints is not None:
            url = self._url(branch.endpoints[call.operation])
            if isinstance(url, str):
                return url
            origin = f"{url.scheme}://{url.netloc.decode()}"
            return Target(
                url=url,
                timeout_s=branch.call_timeout_s or self._call_timeout_s,
                slots_of=origin,
                concurrency_max=INLINE_CONCURRENCY_MAX,
            )
        assert branch.participant is not None, "a branch has a participant or endpoints"
        registered = self._participants.get(branch.participant)
        if registered is None:
            return (
                f"participant {branch.participant} is not registered; register it, and the next attempt will reach it"
            )
        url = self._url(f"{registered.base_url.rstrip('/')}/{call.operation.value}")
        if isinstance(url, str):
            return url
        keys = self._keys.get(registered.name)
        headers = self._headers.get(registered.name, ())
        for unusable in (keys, headers):
            if isinstance(unusable, str):
                return unusable
        assert not isinstance(keys, str)
        assert not isinstance(headers, str)
        return Target(
            url=url,
            timeout_s=registered.call_timeout_s or self._call_timeout_s,
            slots_of=registered.name,
            concurrency_max=registered.concurrency_max,
            signing_keys=keys,
            headers=headers,
        )

    def _take_headers(self, stored: dict[str, str]) -> None:
        """Decrypt what has changed since the last time."""
        if stored == self._stored_headers:
            return
        self._headers = {
            name: self._headers[name]
            if self._stored_headers.get(name) == token
            else self._decrypted_headers(name, token)
            for name, token in stored.items()
        }
        self._stored_headers = stored

    def _decrypted_headers(self, name: str, token: str) -> CallHeaders | str:
        try:
            return tuple(msgspec.json.decode(self._encryption.decrypted(token), type=dict[str, str]).items())
        except (UndecryptableError, msgspec.DecodeError):
            log.error("event=headers_undecryptable participant=%s Calls to it wait. %s", name, SET_THE_KEY)
            return f"nothing was sent: the headers for participant {name} can't be decrypted. {SET_THE_KEY}"

    def _take_secrets(self, stored: dict[str, StoredSecret]) -> None:
        """Decrypt what has changed since the last time."""
        if stored == self._stored:
            return
        self._keys = {
            name: self._keys[name] if self._stored.get(name) == secret else self._decrypted(secret)
            for name, secret in stored.items()
        }
        self._stored = stored

    def _decrypted(self, stored: StoredSecret) -> SigningKeys | str:
        try:
            current = self._secret(stored.current)
            previous = tuple((self._secret(token), expires_at) for token, expires_at in stored.previous)
        except (UndecryptableError, ValueError):
            log.error("event=secret_undecryptable participant=%s Calls to it wait. %s", stored.participant, SET_THE_KEY)
            return f"nothing was sent: the secret of participant {stored.participant} can't be decrypted. {SET_THE_KEY}"
        return SigningKeys(current=current, previous=previous)

    def _secret(self, token: str) -> Secret:
        return Secret.parse(self._encryption.decrypted(token))

    def _checked_url(self, url: str) -> httpx.URL | str:
        """The parsed URL, or why the allow-list (which never changes) doesn't admit it."""
        return self._allowed.fault(url) or httpx.URL(url)


def secrets_fault(connection: Connection, encryption: Encryption) -> str | None:
    """Why the stored secrets can't be used, and what to do; None if they can."""
    for name, token in list_headers(connection).items():
        try:
            encryption.decrypted(token)
        except UndecryptableError:
            what = f"the headers for participant {name}, for one"
            return f"The database has secrets that can't be decrypted: {what}. {SET_THE_KEY}"
    for stored in list_secrets(connection):
        for token in (stored.current, *(token for token, _ in stored.previous)):
            try:
                encryption.decrypted(token)
            except UndecryptableError:
                what = f"the secret of participant {stored.participant}, for one"
                return f"The database has secrets that can't be decrypted: {what}. {SET_THE_KEY}"
    return None


def read_registry(connection: Connection) -> tuple[list[RegisteredParticipant], list[StoredSecret], dict[str, str]]:
    """The participants, their secrets and their headers."""
    return participants.list_participants(connection), list_secrets(connection), list_headers(connection)
