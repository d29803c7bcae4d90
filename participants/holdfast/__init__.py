"""Take part in TCC transactions from a FastAPI service. Guide: docs/sdk.md; contract: docs/protocol.md."""

from holdfast.hold import Hold, Refused
from holdfast.participant import Participant

__all__ = ["Hold", "Participant", "Refused"]
