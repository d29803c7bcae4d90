"""The timings and limits of the protocol. Values only."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """The timings of the protocol in seconds, and its limit of attempts; docs/reference/protocol.md, section 6."""

    retry_base_s: float
    retry_cap_s: float
    hold_margin_s: float
    call_timeout_s: float
    """Time limit of a call, unless the branch has its own."""
    results_bytes_max: int
    """Maximum size of the results that a call carries of other branches, together."""
    hung_attempts: int
    hung_after_s: float
    lease_s: float
    """Lease duration: after this much silence another replica takes a transaction over."""
    linger_s: float
    """Pauses up to this long are waited out in memory; longer ones are left to recovery."""
