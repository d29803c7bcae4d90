"""Bounded, and the same every time: a run of the tests is no lottery."""

from hypothesis import HealthCheck, settings

settings.register_profile(
    "holdfast", max_examples=150, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("holdfast")
