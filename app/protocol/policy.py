"""The timings and limits of the protocol. Values only."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """The timings of the protocol, in seconds, and the limit of attempts; section 6 of the contract."""

    retry_base_s: float
    retry_cap_s: float
    hold_margin_s: float
    hung_attempts: int
    hung_after_s: float
    lease_s: float
    """How long a replica that works on a transaction may be silent before another takes it over."""
    linger_s: float
    """A pause up to this long is waited out in memory; a longer one is left to recovery."""
