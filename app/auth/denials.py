"""Puts refusals into the record and the log: one a minute for a key, or an address, so that nobody floods them."""

import ipaddress
import logging
from collections.abc import Callable
from typing import Final

from app.auth.later_writes import LaterWrites
from app.protocol.messages import Asker
from app.storage import audit
from app.storage.audit import DENIED, AuditEntry
from app.storage.tables import TARGET_CHARS_MAX
from app.trust import parse_address

log = logging.getLogger(__name__)

EVERY_S: Final = 60.0
DAY_S: Final = 86_400.0
PER_DAY_MAX: Final = 10_000
"""Maximum number of refusals a day that this process records."""
SEEN_MAX: Final = 10_000


class Denials:
    """Notes refusals. `clock` gives seconds since the epoch."""

    def __init__(self, writes: LaterWrites, clock: Callable[[], float]) -> None:
        self._writes = writes
        self._clock = clock
        self._seen: set[str] = set()
        self._minute = 0
        self._day = 0
        self._today = 0

    def note(self, key_id: str | None, asker: Asker, action: str, target: str, reason: str) -> None:
        """Note that `asker` was refused, with the key `key_id` or without a valid one."""
        now = self._clock()
        if self._is_flood(key_id or _network(asker.address), now):
            return
        log.warning(
            "event=denied actor=%r address=%s action=%r target=%r reason=%r",
            asker.actor,
            asker.address,
            action,
            target[:TARGET_CHARS_MAX],
            reason,
        )
        self._writes.add(
            audit.add_entries,
            AuditEntry(
                at=now,
                asker=asker,
                action=action,
                target=target[:TARGET_CHARS_MAX],
                reason=reason,
                outcome=DENIED,
            ),
        )

    def _is_flood(self, subject: str, now: float) -> bool:
        minute, day = int(now // EVERY_S), int(now // DAY_S)
        if minute != self._minute:
            self._minute, self._seen = minute, set()
        if day != self._day:
            self._day, self._today = day, 0
        if subject in self._seen or self._today >= PER_DAY_MAX or len(self._seen) >= SEEN_MAX:
            return True
        self._seen.add(subject)
        self._today += 1
        return False


def _network(address: str | None) -> str:
    """The /64 of an IPv6 address, because one host may use all of it, or the address."""
    parsed = parse_address(address or "")
    if isinstance(parsed, ipaddress.IPv6Address):
        return str(ipaddress.ip_network((parsed, 64), strict=False))
    return str(parsed)
