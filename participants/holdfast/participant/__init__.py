"""What a service mounts: a participant with its routes, its background task, and its inquiry to the coordinator."""

from holdfast.participant.participant import Participant
from holdfast.participant.steps import Check, Pivot, Retryable, SagaStep

__all__ = ["Check", "Participant", "Pivot", "Retryable", "SagaStep"]
