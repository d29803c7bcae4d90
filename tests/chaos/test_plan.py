"""What is to be done is drawn from the seed alone, and even a short run does what matters most."""

from collections import Counter
from itertools import islice

from tests.chaos.nemesis import (
    BAG,
    FIRST,
    FREEZES,
    FULL,
    NO_KILLS,
    ON_LINKS,
    PARTED,
    PAUSE_MEAN_S,
    Action,
    FaultLog,
    Kind,
    Outage,
    plan,
)
from tests.chaos.proxy import Mode

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
    assert {action.replica for action in actions if action.kind not in FREEZES} == {0, 1, 2}
    assert {action.participant for action in actions} == {0, 1, 2}
    assert 0.9 < sum(action.pause_s for action in actions) / len(actions) / PAUSE_MEAN_S < 1.1


def test_a_short_run_does_the_worst_first_and_all_of_it() -> None:
    for seed in "123456789":
        actions = drawn(seed, ROUND, seconds=18)
        assert {action.kind for action in actions[: sum(BAG[kind] for kind in FIRST)]} == FIRST
        assert {action.kind for action in actions} == set(BAG)
        assert max(action.pause_s for action in actions) < 18 / ROUND * 2


def test_the_replica_with_old_code_is_frozen_and_never_killed_by_the_plan() -> None:
    old = {action.kind for action in drawn("7", 40 * ROUND) if action.replica == 3}
    assert old == FREEZES


def test_what_cannot_be_done_is_left_out_and_the_rest_is_as_it_was() -> None:
    everything = drawn("7", 3 * ROUND)
    kept = [action for action in everything if action.kind not in FULL]
    without = plan("7", seconds=600, replicas=3, participants=3, without=FULL.keys())
    assert list(islice(without, len(kept))) == kept


def test_a_link_is_cut_or_swallows_or_is_slow() -> None:
    actions = [action for action in drawn("7", 40 * ROUND) if action.kind in ON_LINKS]
    modes = {(action.kind, action.mode) for action in actions}
    parted = {(kind, mode) for kind in PARTED for mode in (Mode.CUT, Mode.SWALLOW)}
    assert modes == parted | {(Kind.LATENCY, Mode.DELAY), (Kind.RESET_LINK, Mode.RESET)}
    assert len({action.link % 9 for action in actions}) == 9


def test_every_kind_is_drawn_or_comes_at_the_end() -> None:
    assert set(BAG) | {Kind.KILL_OLD} == set(Kind)


def test_only_what_kills_counts_as_a_kill() -> None:
    fault_log = FaultLog()
    for kind in Kind:
        fault_log.outages.append(Outage(target="replica-0", kind=kind, since=0.0))
    fault_log.outages.append(Outage(target="postgres", kind=Kind.CRASH_POSTGRES, since=0.0))
    fault_log.outages.append(Outage(target="north", kind=Kind.KILL_PARTICIPANT, since=0.0))
    assert fault_log.kills_by_target == {"replicas": len(set(Kind) - NO_KILLS), "PostgreSQL": 1, "participants": 1}
    assert fault_log.kills == len(set(Kind) - NO_KILLS) + 2
    assert all("SIGKILL" in kind or "immediate" in kind for kind in set(Kind) - NO_KILLS)
