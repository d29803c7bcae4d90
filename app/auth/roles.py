"""Roles, and who has them (docs/how-to/authentication.md). Pure."""

from collections.abc import Set
from dataclasses import dataclass
from enum import StrEnum
from typing import Final


class Role(StrEnum):
    """What a key may do; a key can have several roles."""

    VIEWER = "viewer"  # reads, without payloads, results, responses and error texts
    OPERATOR = "operator"  # reads everything; retries, cancels, resolves
    ADMIN = "admin"  # the registry, keys and secrets; reads what a viewer reads
    INITIATOR = "initiator"  # begins transactions; reads and commands its own
    PARTICIPANT = "participant"  # asks for decisions
    METRICS = "metrics"  # reads /metrics


READERS: Final = frozenset({Role.VIEWER, Role.OPERATOR, Role.ADMIN})
"""Who reads every transaction."""


class AuthMode(StrEnum):
    """HOLDFAST_AUTH."""

    REQUIRE = "require"
    ACCEPT = "accept"
    NONE = "none"


@dataclass(frozen=True, slots=True, kw_only=True)
class Principal:
    """Whoever makes a request.

    `key_id` is None without a key; such a request has been let in, so it may do everything. `participants` are the only
    ones that its transactions may name, if that is limited.
    """

    actor: str | None = None
    key_id: str | None = None
    roles: Set[Role] = frozenset(Role)
    owner: str | None = None
    participant: str | None = None
    participants: Set[str] | None = None
    endpoints: bool = True

    def owns(self, owner: str | None) -> bool:
        """Whether a transaction of this owner is one of its own. What nobody owns is everybody's."""
        return self.key_id is None or owner is None or owner == self.owner

    def reads(self, owner: str | None) -> bool:
        """Whether it may see a transaction of this owner."""
        return bool(self.roles & READERS) or (Role.INITIATOR in self.roles and self.owns(owner))

    def reads_payloads(self, owner: str | None) -> bool:
        """Whether it may see what is in such a transaction, too."""
        return Role.OPERATOR in self.roles or (Role.INITIATOR in self.roles and self.owns(owner))

    def role_for(self, allowed: Set[Role]) -> Role | None:
        """The first of its roles that allows this, for the record."""
        return next((role for role in Role if role in allowed and role in self.roles), None)


ANYBODY: Final = Principal()
"""Whoever was let in without a key."""
