"""What is to be done is drawn from the seed alone, and even a short run does what matters most."""

from collections import Counter
from itertools import islice

from tests.chaos.nemesis import BAG, FIRST, PAUSE_MEAN_S, Action, Kind, plan

ROUND = sum(BAG.values())


def drawn(seed: str, count: int, *, seconds: float = 600) -> list[Action]:
    return list(islice(plan(seed, seconds=seconds, replicas=3, participants=3), count))


def test_the_same_seed_gives_the_same_plan() -> None:
    assert drawn("7", 100) == drawn("7", 100)
    assert drawn("7", 100) != drawn("8", 100)


def test_each_round_does_everything_in_its_proportion() -> None:
    actions = drawn("7", 20 * ROUND)
    rounds = [actions[start : start + ROUND] for start in range(0, len(actions), ROUND)]
    assert all(Counter(action.kind for action in each) == Counter(BAG) for each in rounds)
    assert {action.replica for action in actions} == {action.participant for action in actions} == {0, 1, 2}
    assert 0.9 < sum(action.pause_s for action in actions) / len(actions) / PAUSE_MEAN_S < 1.1


def test_a_short_run_does_the_worst_first_and_all_of_it() -> None:
    for seed in "123456789":
        actions = drawn(seed, ROUND, seconds=18)
        assert {action.kind for action in actions[: sum(BAG[kind] for kind in FIRST)]} == FIRST
        assert {action.kind for action in actions} == set(Kind)
        assert max(action.pause_s for action in actions) < 18 / ROUND * 2
