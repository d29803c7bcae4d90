"""With which secrets a participant's calls are signed at a moment. Knows no database, and prints no secret."""

from dataclasses import dataclass

from holdfast import signing, wire
from holdfast.signing import Secret


@dataclass(frozen=True, slots=True, kw_only=True)
class SigningKeys:
    """A participant's secret; and those before it, with which its calls are signed, too, each until it expires."""

    current: Secret
    previous: tuple[tuple[Secret, float], ...] = ()

    def headers(self, message: wire.Message, body: bytes, *, now: float, timestamp: int) -> dict[str, str]:
        """The headers that sign a call. `now` is by the replicas' clock; `timestamp` is by the wall clock."""
        secrets = [self.current, *[secret for secret, expires_at in self.previous if now < expires_at]]
        id_ = signing.message_id(message.transaction_id, message.branch, message.operation)
        return signing.signed_headers(secrets, id_, timestamp, body)
