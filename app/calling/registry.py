"""Where participants are: registered ones by name, inline endpoints by their own URLs.

Each call looks its target up in memory. A change made on this replica applies at once, one made on another replica at
the next `refresh`. Makes no decisions about transactions.
"""

import asyncio
from functools import lru_cache
from typing import Final

import httpx

from app.calling.allowlist import AllowedEndpoints
from app.calling.caller import Target
from app.protocol.messages import Call
from app.protocol.values import Endpoints
from app.storage import participants
from app.storage.audit import AuditEntry
from app.storage.errors import DuplicateKeyError
from app.storage.group_commit import Journal
from app.storage.participants import RegisteredParticipant, Registration, Removal
from holdfast.wire import Operation

URLS_MAX: Final = 4096
"""Size of the cache of parsed URLs."""
INLINE_CONCURRENCY_MAX: Final = 64
"""Maximum number of concurrent calls to the inline endpoints of one host and port."""


class Registry:
    """The registered participants, and the targets of calls."""

    def __init__(self, journal: Journal, *, allowed: AllowedEndpoints, call_timeout_s: float) -> None:
        self._journal = journal
        self._allowed = allowed
        self._call_timeout_s = call_timeout_s
        self._participants: dict[str, RegisteredParticipant] = {}
        self._refreshing = asyncio.Lock()
        self._url = lru_cache(URLS_MAX)(self._checked_url)  # parsing a URL costs as much as a call

    async def refresh(self) -> None:
        """Reload the registry from the database."""
        async with self._refreshing:  # otherwise a slow, older read could overwrite a newer one
            self._participants = {p.name: p for p in await self._journal.read(participants.list_participants)}

    def all(self) -> list[RegisteredParticipant]:
        return sorted(self._participants.values(), key=lambda p: p.name)

    def get(self, name: str) -> RegisteredParticipant | None:
        return self._participants.get(name)

    async def put(self, participant: RegisteredParticipant, audited: AuditEntry | None = None) -> bool:
        """Register or replace a participant, with this entry in the record; returns whether the name is new."""
        registration = Registration(participant=participant, audited=audited)
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

    def target(self, call: Call) -> Target | str:
        """Where this call goes at present, or why it can't be made."""
        branch = call.branch
        if branch.endpoints is not None:
            url = self._url(_inline_url(branch.endpoints, call.operation))
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
        return Target(
            url=url,
            timeout_s=registered.call_timeout_s or self._call_timeout_s,
            slots_of=registered.name,
            concurrency_max=registered.concurrency_max,
        )

    def _checked_url(self, url: str) -> httpx.URL | str:
        """The parsed URL, or why the allow-list (which never changes) doesn't admit it."""
        return self._allowed.fault(url) or httpx.URL(url)


def _inline_url(endpoints: Endpoints, operation: Operation) -> str:
    return {
        Operation.TRY: endpoints.try_url,
        Operation.CONFIRM: endpoints.confirm_url,
        Operation.CANCEL: endpoints.cancel_url,
    }[operation]
