"""Bounded, and the same every time: a run of the tests is no lottery. `make fuzz` is: it draws anew, and more."""

from hypothesis import HealthCheck, settings

from tests.fuzz.budget import TIMES

settings.register_profile(
    "holdfast",
    max_examples=150 * TIMES,
    deadline=None,
    derandomize=TIMES == 1,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
    print_blob=True,
)
settings.load_profile("holdfast")
