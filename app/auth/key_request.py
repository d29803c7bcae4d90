"""What somebody asks for who wants a key: the body of POST /v1/admin/keys, and the options of `keys create`."""

from datetime import UTC, datetime
from typing import Annotated, Final, Self

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, model_validator

from app.auth.api_keys import ApiKey
from app.auth.roles import Role
from app.calling.registration import Label, ParticipantName
from app.storage.api_keys import StoredKey

PARTICIPANTS_MAX: Final = 1_000


class KeyRequest(BaseModel):
    """A key to create."""

    model_config = ConfigDict(extra="forbid", strict=True)

    name: Label = Field(description="who or what uses the key, for the record", examples=["order-service"])
    roles: list[Annotated[Role, Field(strict=False)]] = Field(
        min_length=1, max_length=len(Role), description="what it may do", examples=[["initiator"]]
    )
    owner: Label | None = Field(
        default=None,
        description="whose the transactions are that are begun with it; keys with the same owner share them. Defaults "
        "to the name",
        examples=["orders"],
    )
    participant: ParticipantName | None = Field(
        default=None, description="role `participant`: the participant that asks for decisions", examples=["inventory"]
    )
    participants: list[ParticipantName] | None = Field(
        default=None,
        max_length=PARTICIPANTS_MAX,
        description="role `initiator`: the only participants that its transactions may name; by default any",
    )
    endpoints: bool = Field(
        default=False, description="role `initiator`: whether its transactions may name URLs instead of participants"
    )
    expires_at: Annotated[AwareDatetime, Field(strict=False)] | None = Field(
        default=None, description="when it ends by itself; by default never", examples=["2031-01-01T00:00:00Z"]
    )

    @model_validator(mode="after")
    def _fits_the_roles(self) -> Self:
        if len(set(self.roles)) < len(self.roles):
            raise ValueError("roles: each role at most once")
        if (self.participant is not None) != (Role.PARTICIPANT in self.roles):
            raise ValueError("participant: the role `participant` needs the name of one, and no other role takes it")
        if Role.INITIATOR not in self.roles and (self.endpoints or self.participants is not None or self.owner):
            raise ValueError("owner, participants and endpoints are for the role `initiator`")
        return self

    def key(self, shown: ApiKey, now: float) -> StoredKey:
        """The key as it is stored. Raises ValueError if it has ended already; `now` is in seconds since the epoch."""
        expires_at = None if self.expires_at is None else self.expires_at.timestamp()
        if expires_at is not None and expires_at <= now:
            raise ValueError(f"expires_at: it is {datetime.fromtimestamp(now, UTC):%Y-%m-%dT%H:%M:%SZ} already")
        return StoredKey(
            id=shown.id,
            name=self.name,
            secret_hash=shown.secret_hash,
            roles=tuple(role.value for role in self.roles),
            owner=self.owner or self.name,
            participant=self.participant,
            participants=None if self.participants is None else tuple(self.participants),
            endpoints=self.endpoints,
            created_at=now,
            expires_at=expires_at,
        )
