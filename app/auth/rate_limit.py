"""How many requests a key may make: as many a second as the limit says, and a second's worth at once."""

from collections.abc import Callable
from typing import Final

KEYS_MAX: Final = 4_096


class RateLimit:
    """A token bucket for each key. `elapsed_s` is a monotonic clock; a limit of 0 is none."""

    def __init__(self, per_s: float, elapsed_s: Callable[[], float]) -> None:
        self._per_s = per_s
        self._elapsed_s = elapsed_s
        self._buckets: dict[str, tuple[float, float]] = {}
        """Key → what was left at which time."""

    def admits(self, key_id: str) -> bool:
        """Whether this key may make a request now, which counts."""
        if not self._per_s:
            return True
        now, full = self._elapsed_s(), max(1.0, self._per_s)
        left, at = self._buckets.get(key_id, (full, now))
        left = min(full, left + (now - at) * self._per_s)
        if len(self._buckets) >= KEYS_MAX and key_id not in self._buckets:
            self._buckets.clear()
        self._buckets[key_id] = (left - 1 if left >= 1 else left, now)
        return left >= 1
