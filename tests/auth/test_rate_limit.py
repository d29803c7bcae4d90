"""How many requests a key may make."""

import pytest

from app.auth import rate_limit
from app.auth.rate_limit import RateLimit


def test_a_second_s_worth_at_once_and_then_as_many_a_second() -> None:
    now = 100.0
    limit = RateLimit(5, lambda: now)
    assert [limit.admits("a") for _ in range(7)] == [True] * 5 + [False] * 2
    assert limit.admits("b")
    now += 0.4
    assert [limit.admits("a") for _ in range(3)] == [True, True, False]
    now += 1_000
    assert sum(limit.admits("a") for _ in range(100)) == 5


def test_less_than_one_a_second_is_still_one_at_once() -> None:
    now = 0.0
    limit = RateLimit(0.5, lambda: now)
    assert [limit.admits("a"), limit.admits("a")] == [True, False]
    now += 2
    assert limit.admits("a")


def test_none_at_all_with_0() -> None:
    limit = RateLimit(0, lambda: 0.0)
    assert all(limit.admits("a") for _ in range(1_000))


def test_it_remembers_a_limited_number_of_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rate_limit, "KEYS_MAX", 10)
    limit = RateLimit(1, lambda: 0.0)
    for number in range(1_000):
        limit.admits(str(number))
    assert len(limit._buckets) <= 10
