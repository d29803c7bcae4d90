"""The registry entry of a participant, as clients and HOLDFAST_PARTICIPANTS provide it. A value and its limits."""

from typing import Annotated, Final

from pydantic import BaseModel, ConfigDict, Field

CALL_TIMEOUT_MAX_S: Final = 3600.0
"""Longest time limit of a call that a registry entry or a branch may set."""
ParticipantName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]


class RegistryBody(BaseModel):
    """What is registered under a participant's name; the body of `PUT /v1/participants/{name}`."""

    model_config = ConfigDict(extra="forbid", strict=True)

    base_url: str = Field(
        max_length=2000, description="URL under which the participant mounts /try, /confirm and /cancel"
    )
    call_timeout_s: float | None = Field(
        default=None,
        gt=0,
        le=CALL_TIMEOUT_MAX_S,
        description="time limit of a whole call, in seconds; defaults to HOLDFAST_CALL_TIMEOUT_S",
    )
    concurrency_max: int = Field(default=64, ge=1, le=10_000, description="maximum number of concurrent calls")
