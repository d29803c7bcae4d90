"""Every limit and timeout of the coordinator, read from the environment (prefix HOLDFAST_).

The table in docs/reference/settings.md is made from this; units are in the names. Nothing else reads the environment.
"""

import json
from pathlib import Path
from typing import Annotated, Final, Self

from pydantic import Field, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from app.calling.allowlist import AllowedEndpoints
from app.calling.registration import ParticipantName, RegistryBody
from app.protocol.policy import Policy

BRANCHES_LIMIT: Final = 1000
"""HOLDFAST_BRANCHES_MAX goes no higher: a whole transaction is one row, and one step of one loop."""

Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Settings(BaseSettings):
    """The coordinator's settings; section 6 of docs/reference/protocol.md."""

    model_config = SettingsConfigDict(env_prefix="HOLDFAST_", extra="ignore")

    database_url: str = Field("sqlite:///holdfast.db", description="SQLAlchemy URL, without or with a driver")
    host: str = Field("127.0.0.1", description="where `python -m app serve` listens")
    port: int = Field(8000, ge=0, le=65535, description="where `python -m app serve` listens; 0 takes a free port")
    participants: Annotated[dict[ParticipantName, RegistryBody], NoDecode] = Field(
        default_factory=dict,
        description="JSON: name → base URL, or name → registry body; added to the registry at start",
    )
    allowed_endpoints: str = Field(
        ",".join(
            f"{scheme}://{host}:*" for scheme in ("http", "https") for host in ("localhost", "127.0.0.1", "[::1]")
        ),
        description="what endpoints and base URLs may point to: scheme://host-pattern:port, comma-separated",
    )
    timeout_default_s: Seconds = Field(30.0, description="time to a decision, unless begin says otherwise")
    timeout_max_s: Seconds = Field(86_400.0, description="the longest time to a decision that begin may ask for")
    wait_default_s: float = Field(30.0, ge=0, le=3600, description="how long begin waits, unless the client says")
    call_timeout_s: Seconds = Field(5.0, description="one call to a participant, unless its registry entry says")
    retry_base_s: Seconds = Field(0.2, description="back-off after the first failure, before jitter")
    retry_cap_s: Seconds = Field(60.0, description="the longest back-off")
    hold_margin_s: float = Field(30.0, ge=0, description="added to the time left to the deadline for hold_ttl_s")
    hung_attempts: int = Field(5, ge=1, description="a decided branch counts as hung after so many attempts")
    hung_after_s: Seconds = Field(60.0, description="… or so long after the decision")
    branches_max: int = Field(64, ge=1, le=BRANCHES_LIMIT, description="branches in one transaction")
    body_max_bytes: int = Field(1_048_576, ge=1, description="the longest request body")
    response_max_bytes: int = Field(65_536, ge=1, description="the longest response of a participant")
    calls_max: int = Field(1000, ge=1, description="calls to participants under way at once, in all")
    inflight_max: int = Field(10_000, ge=1, description="transactions worked on at once; more are answered 503")
    lease_s: Seconds = Field(15.0, description="a replica silent for so long loses its transactions to another")
    shutdown_timeout_s: Seconds = Field(10.0, description="time to finish what is under way after SIGTERM")

    retention_days: float = Field(
        30.0, ge=0, allow_inf_nan=False, description="finished transactions are purged after so many days; 0 keeps them"
    )
    export_directory: Path | None = Field(
        None, description="an existing directory, to which they are appended as JSON lines before they are purged"
    )

    @field_validator("participants", mode="before")
    @classmethod
    def _base_url_alone_is_a_body(cls, value: object) -> object:
        if isinstance(value, str):
            try:
                value = json.loads(value)
            except (ValueError, RecursionError) as error:
                raise ValueError(f"not JSON ({error}); an object is wanted: name → base URL") from error
        if not isinstance(value, dict):
            return value
        return {name: {"base_url": body} if isinstance(body, str) else body for name, body in value.items()}

    @model_validator(mode="after")
    def _limits_agree(self) -> Self:
        if self.timeout_default_s > self.timeout_max_s:
            raise ValueError("HOLDFAST_TIMEOUT_DEFAULT_S must not exceed HOLDFAST_TIMEOUT_MAX_S")
        if self.retry_base_s > self.retry_cap_s:
            raise ValueError("HOLDFAST_RETRY_BASE_S must not exceed HOLDFAST_RETRY_CAP_S")
        allowed = self.allowed
        for name, body in self.participants.items():
            if fault := allowed.base_fault(body.base_url):
                raise ValueError(f"HOLDFAST_PARTICIPANTS: {name}: {fault}")
        return self

    @property
    def allowed(self) -> AllowedEndpoints:
        return AllowedEndpoints.parse(self.allowed_endpoints)

    @property
    def policy(self) -> Policy:
        return Policy(
            retry_base_s=self.retry_base_s,
            retry_cap_s=self.retry_cap_s,
            hold_margin_s=self.hold_margin_s,
            hung_attempts=self.hung_attempts,
            hung_after_s=self.hung_after_s,
            lease_s=self.lease_s,
            linger_s=min(1.0, self.lease_s / 5),
        )
