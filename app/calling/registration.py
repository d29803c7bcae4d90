"""The registry entry of a participant, as clients and HOLDFAST_PARTICIPANTS provide it. A value and its limits."""

from typing import Annotated, Any, Final

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SecretStr, Strict, field_validator

from app.calling.call_headers import headers_fault
from app.storage.tables import NAME_CHARS_MAX
from holdfast.wire import Kind, is_one_line

CALL_TIMEOUT_MAX_S: Final = 3600.0
"""Longest time limit of a call that a registry entry or a branch may set."""


def one_line(text: str) -> str:
    """The text, if it is one line; pydantic's validator. Raises ValueError."""
    if not is_one_line(text):
        raise ValueError("must be one line, without control characters")
    return text


Label = Annotated[str, Field(min_length=1, max_length=NAME_CHARS_MAX), AfterValidator(one_line)]
"""A name of something, for people: any text on one line."""
ParticipantName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]


class RegistryBody(BaseModel):
    """What is registered under a participant's name; the body of `PUT /v1/participants/{name}`."""

    model_config = ConfigDict(extra="forbid", strict=True)

    base_url: str = Field(
        max_length=2000,
        description="URL under which the participant mounts its operations, such as /try, /confirm and /cancel",
    )
    call_timeout_s: float | None = Field(
        default=None,
        gt=0,
        le=CALL_TIMEOUT_MAX_S,
        description="time limit of a whole call, in seconds; defaults to HOLDFAST_CALL_TIMEOUT_S",
    )
    concurrency_max: int = Field(default=64, ge=1, le=10_000, description="maximum number of concurrent calls")
    kinds: Annotated[list[Annotated[Kind, Strict(strict=False)]], Field(min_length=1)] | None = Field(
        default=None,
        description="the kinds of branches that it takes; others are refused before anything is recorded. Without this "
        "member the participant itself refuses what it isn't",
        examples=[["tcc"]],
    )
    headers: dict[str, SecretStr] | None = Field(
        default=None,
        description="sent with each call, such as credentials; never shown again. Without this member those that are "
        "there stay, unless the origin of the base URL changes; `{}` removes them",
    )

    @field_validator("headers")
    @classmethod
    def _headers_can_be_sent(cls, value: dict[str, SecretStr] | None) -> dict[str, SecretStr] | None:
        if value is not None and (fault := headers_fault(_plain(value))):
            raise ValueError(fault)
        return value

    @property
    def header_values(self) -> dict[str, str] | None:
        """The headers, to encrypt or send them. Not for logs, errors or answers."""
        return None if self.headers is None else _plain(self.headers)

    @field_validator("kinds")
    @classmethod
    def _each_kind_once(cls, value: list[Kind] | None) -> list[Kind] | None:
        return None if value is None else sorted(set(value))

    @property
    def members(self) -> dict[str, Any]:
        """The rest of the entry."""
        kinds = None if self.kinds is None else tuple(self.kinds)
        return self.model_dump(exclude={"headers", "kinds"}) | {"kinds": kinds}


def _plain(headers: dict[str, SecretStr]) -> dict[str, str]:
    return {name: value.get_secret_value() for name, value in headers.items()}
