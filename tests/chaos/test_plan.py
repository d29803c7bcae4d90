"""What is to be done is drawn from the seed alone, and even a short run does what matters most."""

from collections import Counter

from tests.chaos.nemesis import BAG, FIRST, Kind, plan


def test_the_same_seed_gives_the_same_plan() -> None:
    drawn = [plan(seed, seconds=600, replicas=3, participants=3) for seed in ("7", "7", "8")]
    assert drawn[0] == drawn[1] != drawn[2]


def test_a_long_run_does_everything_in_its_proportion_and_to_everybody() -> None:
    actions = plan("7", seconds=1800, replicas=3, participants=3)
    counts = Counter(action.kind for action in actions)
    assert counts.keys() == set(Kind)
    assert counts[Kind.KILL_REPLICA] > counts[Kind.KILL_ALL_REPLICAS] * BAG[Kind.KILL_REPLICA] / 2
    assert {action.replica for action in actions} == {action.participant for action in actions} == {0, 1, 2}
    assert [action.at for action in actions] == sorted(action.at for action in actions)


def test_a_short_run_does_the_worst_first() -> None:
    for seed in "123456789":
        actions = plan(seed, seconds=18, replicas=2, participants=3)
        at_first = {action.kind for action in actions[: sum(BAG[kind] for kind in FIRST)]}
        assert at_first == set(FIRST)
        assert all(0 < action.at < 18 for action in actions)
