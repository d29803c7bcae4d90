"""A few seeds hold what the rules say, and the same seed gives the same trace in a process of its own."""

import os
import subprocess
import sys

from tests.harness.repository import ROOT
from tests.simulation.faults import Fault

PROGRAM = (
    "from tests.simulation.world import run_seed\n"
    "for seed in {seeds}:\n"
    "    result = run_seed(seed)\n"
    "    print(seed, result.trace, len(result.violations), result.transactions, *result.violations)\n"
)


def traces(seeds: list[int], hash_seed: str) -> list[list[str]]:
    """What each seed came to, in a fresh process: the simulation replaces parts of modules that other tests need."""
    environment = os.environ | {"PYTHONHASHSEED": hash_seed}
    command = [sys.executable, "-c", PROGRAM.format(seeds=seeds)]
    ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=300)
    assert ended.returncode == 0, ended.stderr
    return [line.split() for line in ended.stdout.splitlines()]


def test_seeds_hold_and_are_the_same_in_another_process() -> None:
    seeds = [1, 2, 3, 4]
    first = traces(seeds, "1")
    assert [(line[2], line[3]) for line in first] == [("0", "20")] * len(seeds), first
    assert traces(seeds[::-1], "2")[::-1] == first


def test_every_fault_has_words() -> None:
    assert len({fault.value for fault in Fault}) == len(Fault)
