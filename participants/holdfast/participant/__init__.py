"""What a service mounts: a participant with its routes, its reaper, and its inquiry to the coordinator."""

from holdfast.participant.participant import Participant

__all__ = ["Participant"]
