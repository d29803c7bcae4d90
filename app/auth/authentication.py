"""Finds out who makes a request, by the API key that it shows. Doesn't decide what that allows."""

import asyncio
import hmac
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from app.auth.api_keys import ApiKey
from app.auth.later_writes import LaterWrites
from app.auth.roles import Principal, Role
from app.clock import elapsed_s
from app.storage import api_keys
from app.storage.api_keys import StoredKey, Use
from app.storage.group_commit import Journal

CACHE_S: Final = 5.0
"""How long a key is used as it was last read, in seconds. Other replicas hear of its end within this time."""
CACHED_MAX: Final = 4_096
USE_NOTED_EVERY_S: Final = 60.0
_SCHEME: Final = "bearer "


class UnauthenticatedError(Exception):
    """The request shows no key, or none that is valid. Doesn't say why: that would help whoever guesses."""


@dataclass(frozen=True, slots=True)
class _Cached:
    read: asyncio.Task[tuple[StoredKey, Principal] | None]
    at: float


class Authenticator:
    """Looks keys up. `clock` gives seconds since the epoch."""

    def __init__(self, journal: Journal, writes: LaterWrites, clock: Callable[[], float]) -> None:
        self._journal = journal
        self._writes = writes
        self._clock = clock
        self._cached: dict[str, _Cached] = {}
        self._noted: dict[str, float] = {}

    async def authenticate(self, authorization: Sequence[str]) -> Principal:
        """Who shows these Authorization headers. Raises UnauthenticatedError, or DatabaseError if nobody can tell.

        Refuses only after a look of its own: another replica may have created or rotated the key a moment ago.
        """
        key = _shown(authorization)
        arrived_at = elapsed_s()
        for read_since in (arrived_at - CACHE_S, arrived_at):
            found = await self._find(key.id, read_since)
            now = self._clock()
            if found is not None and _is_valid(found[0], key, now):
                self._note_use(found[0], now)
                return found[1]
        raise UnauthenticatedError

    def forget(self, key_id: str) -> None:
        """Read this key again before it is used again: it was changed here."""
        self._cached.pop(key_id, None)

    async def _find(self, key_id: str, read_since: float) -> tuple[StoredKey, Principal] | None:
        """The key as it was read at this time or later. Requests share a read, which goes on if one is given up."""
        cached, now = self._cached.get(key_id), elapsed_s()
        if cached is None or cached.at < read_since:
            while len(self._cached) >= CACHED_MAX:
                del self._cached[next(iter(self._cached))]
            self._cached.pop(key_id, None)
            cached = self._cached[key_id] = _Cached(asyncio.create_task(self._read(key_id)), now)
        try:
            return cached.read.result() if cached.read.done() else await asyncio.shield(cached.read)
        finally:
            if _has_failed(cached.read) and self._cached.get(key_id) is cached:
                del self._cached[key_id]

    async def _read(self, key_id: str) -> tuple[StoredKey, Principal] | None:
        stored = await self._journal.read(api_keys.find_key, key_id)
        return None if stored is None else (stored, _principal(stored))

    def _note_use(self, key: StoredKey, now: float) -> None:
        noted_at = max(self._noted.get(key.id, 0.0), key.last_used_at or 0.0)
        if now - noted_at >= USE_NOTED_EVERY_S:
            if len(self._noted) >= CACHED_MAX:
                self._noted.clear()
            self._noted[key.id] = now
            self._writes.add(api_keys.note_uses, Use(id=key.id, at=now))


def _has_failed(read: asyncio.Task[Any]) -> bool:
    return read.done() and (read.cancelled() or read.exception() is not None)


def _shown(authorization: Sequence[str]) -> ApiKey:
    if len(authorization) != 1 or authorization[0][: len(_SCHEME)].lower() != _SCHEME:
        raise UnauthenticatedError
    try:
        return ApiKey.parse(authorization[0][len(_SCHEME) :].strip())
    except ValueError:
        raise UnauthenticatedError from None


def _is_valid(stored: StoredKey, shown: ApiKey, now: float) -> bool:
    shown_hash = shown.secret_hash
    is_it = hmac.compare_digest(stored.secret_hash, shown_hash)
    was_it = hmac.compare_digest(stored.previous_hash or "", shown_hash) and now < (stored.previous_until or 0.0)
    has_ended = stored.revoked_at is not None or (stored.expires_at is not None and stored.expires_at <= now)
    return (is_it or was_it) and not has_ended


def _principal(key: StoredKey) -> Principal:
    return Principal(
        actor=key.name,
        key_id=key.id,
        roles=frozenset(role for role in Role if role.value in key.roles),
        owner=key.owner,
        participant=key.participant,
        participants=None if key.participants is None else frozenset(key.participants),
        endpoints=key.endpoints,
    )
