"""Every limit and timeout of the coordinator, read from the environment (prefix HOLDFAST_).

The table in docs/reference/settings.md is generated from this file. Units are in the names. Nothing else reads the
environment.
"""

import json
import re
import ssl
from pathlib import Path
from typing import Annotated, Final, Self
from urllib.parse import urlsplit

from pydantic import AwareDatetime, Field, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from app.auth.api_keys import ApiKey
from app.auth.roles import AuthMode
from app.calling.addresses import AddressRules
from app.calling.allowlist import AllowedEndpoints
from app.calling.registration import ParticipantName, RegistryBody
from app.calling.tls import tls_context
from app.log_format import LogFormat
from app.protocol.policy import Policy
from app.storage.encryption import KEY_SETTINGS, Encryption
from app.storage.engines import normal_url
from app.trust import ANY_HOST, LOOPBACK_HOSTS, TrustedHosts, TrustedProxies, is_loopback
from holdfast.wire import DOCUMENT_BYTES_MAX, ENVELOPE_BYTES_MAX

BRANCHES_LIMIT: Final = 1000
"""Upper bound of HOLDFAST_BRANCHES_MAX: a whole transaction is one row, and one step of one loop."""

TIMEOUT_LIMIT_S: Final = 200_000_000_000
"""Upper bound of HOLDFAST_TIMEOUT_MAX_S, some 6,300 years: a deadline is a date, and dates end with the year 9999."""

LOOPBACK_ENDPOINTS: Final = ",".join(
    f"{scheme}://{host}:*" for scheme in ("http", "https") for host in ("localhost", "127.0.0.1", "[::1]")
)

OWN_SEGMENTS: Final = frozenset({"v1", "docs", "openapi.json", "problems", "healthz", "readyz", "metrics", "admin"})
"""What the coordinator's own paths begin with."""

_PATH: Final = re.compile(r"(?:/[A-Za-z0-9._~-]+)*")

Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Settings(BaseSettings):
    """The coordinator's settings; section 6 of docs/reference/protocol.md."""

    model_config = SettingsConfigDict(env_prefix="HOLDFAST_", extra="ignore")

    database_url: str = Field(
        "sqlite:///holdfast.db", description="SQLAlchemy URL of the database; the driver can be left out"
    )
    direct_database_url: str | None = Field(
        None,
        description="URL of the same PostgreSQL database without the pooler (PgBouncer in transaction mode) that "
        "DATABASE_URL leads to: for migrations and notifications",
    )
    database_wait_s: float = Field(
        60.0,
        ge=0,
        allow_inf_nan=False,
        description="how long `python -m app serve` waits at its start for a database server that can't be used yet",
    )
    host: str = Field("127.0.0.1", description="address that `python -m app serve` listens on")
    port: int = Field(
        8000, ge=0, le=65535, description="port that `python -m app serve` listens on; 0 picks a free one"
    )
    auth: AuthMode | None = Field(
        None,
        description="`require` an API key; `accept` keys, and only count the requests that `require` would refuse; or "
        "`none`. Needed unless it listens on loopback, where the default is `none`",
    )
    bootstrap_key: str | None = Field(
        None,
        repr=False,
        description="the first API key, an admin's, from `python -m app keys generate`; ignored once there is any",
    )
    bootstrap_key_file: Path | None = Field(None, description="file with the first API key, instead")
    rate_per_key: float = Field(
        100.0,
        ge=0,
        allow_inf_nan=False,
        description="requests a second that a key may make of each process, inquiries aside; 0 is no limit",
    )
    public_url: str | None = Field(
        None,
        description="URL of the coordinator, as its clients know it; kept in the database, which doesn't run under "
        "another",
    )
    trusted_hosts: str | None = Field(
        None,
        description="names that clients may use for the coordinator: host or host:port, comma-separated; by default "
        "those of loopback if it listens there, else any",
    )
    trusted_proxies: str = Field(
        "", description="addresses and networks whose `X-Forwarded-For` is believed, comma-separated"
    )
    root_path: str = Field(
        "", description="path of a proxy below which clients reach the coordinator, such as `/holdfast`"
    )
    participants: Annotated[dict[ParticipantName, RegistryBody], NoDecode] = Field(
        default_factory=dict,
        description="JSON object: name → base URL, or name → registry entry; registered at start",
    )
    allowed_endpoints: str | None = Field(
        None,
        description="URLs that the coordinator may call: scheme://host-pattern:port, comma-separated; by default those "
        "of loopback if it listens there, else none",
    )
    allowed_addresses: str = Field(
        "", description="addresses and networks that it may connect to although they are denied, comma-separated"
    )
    denied_addresses: str = Field(
        "", description="further addresses and networks that it may not connect to, comma-separated"
    )
    call_ca_file: Path | None = Field(
        None,
        description="file with further certificate authorities, PEM, that participants' certificates may come from",
    )
    call_cert_file: Path | None = Field(
        None, description="file with the certificate, PEM, that the coordinator shows to participants"
    )
    call_key_file: Path | None = Field(
        None, description="file with the key of that certificate, PEM, if it isn't in the same file"
    )
    secrets_key: SecretStr | None = Field(
        None,
        description="encrypts participants' secrets in the database; several keys, the newest first, comma-separated",
    )
    secrets_key_file: Path | None = Field(None, description="file that holds `SECRETS_KEY` instead")
    timeout_default_s: Seconds = Field(30.0, description="time to the decision, unless begin sets another")
    timeout_max_s: float = Field(
        2_592_000.0,
        gt=0,
        le=TIMEOUT_LIMIT_S,
        allow_inf_nan=False,
        description="longest time to the decision that begin may set",
    )
    wait_default_s: float = Field(
        60.0,
        ge=0,
        le=3600,
        description="how long begin waits without `Prefer: wait`; should be longer than the time to the decision",
    )
    call_timeout_s: Seconds = Field(
        5.0, description="time limit of a call to a participant, unless its registry entry sets another"
    )
    retry_base_s: Seconds = Field(
        0.2, description="back-off after the first failure, before jitter; doubles with each further failure"
    )
    retry_cap_s: Seconds = Field(60.0, description="longest back-off")
    hold_margin_s: float = Field(30.0, ge=0, description="how long past the deadline participants are asked to hold")
    hung_attempts: int = Field(
        5, ge=1, description="failed attempts after which a branch counts as hung; undecided, time must pass, too"
    )
    hung_after_s: Seconds = Field(
        60.0, description="time after the decision, or the first Try, when a branch counts as hung"
    )
    branches_max: int = Field(64, ge=1, le=BRANCHES_LIMIT, description="maximum number of branches in a transaction")
    body_max_bytes: int = Field(
        1_048_576, ge=1, le=DOCUMENT_BYTES_MAX, description="maximum size of the body of a begin; others are small"
    )
    response_max_bytes: int = Field(
        65_536,
        ge=1,
        le=DOCUMENT_BYTES_MAX - ENVELOPE_BYTES_MAX,
        description="how much is read of a participant's response; a longer result cancels the transaction",
    )
    memory_max_bytes: int = Field(
        268_435_456,
        ge=1_048_576,
        description="what requests and transactions in progress may take in memory; further begins are answered 503",
    )
    calls_max: int = Field(1000, ge=1, description="maximum number of concurrent calls to all participants")
    connection_age_max_s: Seconds = Field(
        60.0, description="after this time a connection to a participant isn't used for further calls"
    )
    inflight_max: int = Field(
        10_000, ge=1, description="maximum number of transactions in progress; further ones are answered 503"
    )
    lease_s: Seconds = Field(15.0, description="lease duration: after this much silence another replica takes over")
    shutdown_timeout_s: Seconds = Field(10.0, description="how long work in progress may take to finish after SIGTERM")

    log_format: LogFormat = Field(LogFormat.TEXT, description="`text`, or `json`: one object a line")

    restored_from: AwareDatetime | None = Field(
        None,
        description="time of the backup that the database was restored from, with its zone: unknown transactions begun "
        "between then and the first start with this setting are 503",
    )
    retention_days: float = Field(
        30.0,
        ge=0,
        allow_inf_nan=False,
        description="finished transactions are purged after this many days; 0 keeps them forever",
    )
    audit_days: float = Field(
        400.0,
        gt=0,
        allow_inf_nan=False,
        description="entries of the record of who did what are deleted after this many days",
    )
    export_directory: Path | None = Field(
        None, description="existing directory for an export as JSON lines; transactions are purged once they are in it"
    )

    @field_validator("participants", mode="before")
    @classmethod
    def _base_url_alone_is_a_body(cls, value: object) -> object:
        if isinstance(value, str):
            try:
                value = json.loads(value)
            except (ValueError, RecursionError) as error:
                raise ValueError(
                    f'not JSON ({error}); write an object such as {{"inventory": "http://10.0.0.7/tcc"}}'
                ) from error
        if not isinstance(value, dict):
            return value
        return {name: {"base_url": body} if isinstance(body, str) else body for name, body in value.items()}

    @field_validator("root_path")
    @classmethod
    def _root_path_is_a_path(cls, value: str) -> str:
        path = value.rstrip("/")
        if not _PATH.fullmatch(path) or path.strip("/").split("/")[0] in OWN_SEGMENTS:
            raise ValueError("must be empty or a path such as /holdfast, and none of the coordinator's own")
        return path

    @model_validator(mode="after")
    def _limits_agree(self) -> Self:
        if self.timeout_default_s > self.timeout_max_s:
            raise ValueError(
                "HOLDFAST_TIMEOUT_DEFAULT_S must not exceed HOLDFAST_TIMEOUT_MAX_S; lower the one or raise the other"
            )
        if self.retry_base_s > self.retry_cap_s:
            raise ValueError(
                "HOLDFAST_RETRY_BASE_S must not exceed HOLDFAST_RETRY_CAP_S; lower the one or raise the other"
            )
        if 4 * self.body_max_bytes > self.memory_max_bytes:
            raise ValueError(
                "HOLDFAST_MEMORY_MAX_BYTES must be at least four times HOLDFAST_BODY_MAX_BYTES; raise the one or lower "
                "the other"
            )
        if self.direct_database_url is not None:
            urls = (self.database_url, self.direct_database_url)
            if {normal_url(each).get_backend_name() for each in urls} != {"postgresql"}:
                raise ValueError(
                    "HOLDFAST_DIRECT_DATABASE_URL: is for PostgreSQL behind a pooler; both URLs must be of PostgreSQL"
                )
        _ = self.hosts, self.proxies, self.first_key, self.public_origin  # raise if they can't be read
        _ = self.encryption, self.address_rules  # likewise
        if self.call_ca_file or self.call_cert_file or self.call_key_file:
            self.call_tls()
        allowed = self.allowed
        for name, body in self.participants.items():
            if fault := allowed.base_fault(body.base_url):
                raise ValueError(f"HOLDFAST_PARTICIPANTS: {name}: {fault}")
            if body.headers and not self.encryption.has_key:
                raise ValueError(f"HOLDFAST_PARTICIPANTS: {name}: headers can't be stored; set {KEY_SETTINGS}")
        return self

    @property
    def allowed(self) -> AllowedEndpoints:
        default = LOOPBACK_ENDPOINTS if is_loopback(self.host) else ""
        return AllowedEndpoints.parse(default if self.allowed_endpoints is None else self.allowed_endpoints)

    @property
    def address_rules(self) -> AddressRules:
        return AddressRules.parse(self.denied_addresses, self.allowed_addresses)

    def call_tls(self) -> ssl.SSLContext:
        """What calls to https URLs use. Reads the files. Raises ValueError."""
        return tls_context(ca_file=self.call_ca_file, cert_file=self.call_cert_file, key_file=self.call_key_file)

    @property
    def encryption(self) -> Encryption:
        """What encrypts secrets in the database; without a key nothing can be encrypted."""
        if self.secrets_key is not None and self.secrets_key_file is not None:
            raise ValueError("HOLDFAST_SECRETS_KEY and HOLDFAST_SECRETS_KEY_FILE are both set; set one of them")
        setting, text = "HOLDFAST_SECRETS_KEY", self.secrets_key.get_secret_value() if self.secrets_key else ""
        if self.secrets_key_file is not None:
            setting = "HOLDFAST_SECRETS_KEY_FILE"
            try:
                text = self.secrets_key_file.read_text(encoding="utf-8")
            except (OSError, UnicodeError) as error:
                reason = getattr(error, "strerror", None) or "not text"
                raise ValueError(f"{setting}: can't read {self.secrets_key_file} ({reason})") from None
        try:
            return Encryption.parse(text)
        except ValueError as error:
            raise ValueError(f"{setting}: {error}") from None

    @property
    def hosts(self) -> TrustedHosts:
        default = LOOPBACK_HOSTS if is_loopback(self.host) else ANY_HOST
        return TrustedHosts.parse(default if self.trusted_hosts is None else self.trusted_hosts)

    @property
    def proxies(self) -> TrustedProxies:
        return TrustedProxies.parse(self.trusted_proxies)

    @property
    def unpooled_url(self) -> str:
        """Where a connection keeps its session: for what needs one, and for what is done rarely."""
        return self.direct_database_url or self.database_url

    @property
    def auth_mode(self) -> AuthMode:
        """Raises ValueError if it has to be set, and isn't."""
        if self.auth is None and not is_loopback(self.host):
            raise ValueError(
                "HOLDFAST_AUTH: must be set, because HOLDFAST_HOST is not loopback. Set it to require and create the "
                "first key with HOLDFAST_BOOTSTRAP_KEY (see docs/how-to/authentication.md), or to none if everybody "
                "who reaches this port may do everything"
            )
        return self.auth or AuthMode.NONE

    @property
    def first_key(self) -> ApiKey | None:
        """Raises ValueError if it hasn't the form of a key, or can't be read."""
        if self.bootstrap_key is not None and self.bootstrap_key_file is not None:
            raise ValueError("HOLDFAST_BOOTSTRAP_KEY and HOLDFAST_BOOTSTRAP_KEY_FILE: set one of them")
        name = "HOLDFAST_BOOTSTRAP_KEY" if self.bootstrap_key_file is None else "HOLDFAST_BOOTSTRAP_KEY_FILE"
        text = self.bootstrap_key
        if self.bootstrap_key_file is not None:
            try:
                text = self.bootstrap_key_file.read_text(encoding="utf-8")
            except (OSError, ValueError) as error:
                raise ValueError(f"{name}: can't be read ({type(error).__name__})") from None
        try:
            return None if text is None else ApiKey.parse(text.strip())
        except ValueError:
            raise ValueError(f"{name}: must be a key, as `python -m app keys generate` prints one") from None

    @property
    def public_origin(self) -> str | None:
        """The origin of the public URL. Raises ValueError if that isn't one."""
        if self.public_url is None:
            return None
        try:
            parts = urlsplit(self.public_url)
            is_url = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.username is None
            _ = parts.port
        except ValueError:
            is_url = False
        if not is_url:
            raise ValueError("HOLDFAST_PUBLIC_URL: must be a URL such as https://holdfast.example.com")
        return f"{parts.scheme}://{parts.netloc.lower()}"

    @property
    def policy(self) -> Policy:
        return Policy(
            retry_base_s=self.retry_base_s,
            retry_cap_s=self.retry_cap_s,
            hold_margin_s=self.hold_margin_s,
            call_timeout_s=self.call_timeout_s,
            results_bytes_max=self.body_max_bytes,
            hung_attempts=self.hung_attempts,
            hung_after_s=self.hung_after_s,
            lease_s=self.lease_s,
            linger_s=min(1.0, self.lease_s / 5),
        )
