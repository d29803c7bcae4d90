"""Mutate modules and run their tests: `python -m tests.mutation`. Exit code 1 when a score is below the module's goal,
when a mutant survives that survivors.toml does not explain, or when one is explained that does not survive.

Without --all these are the two state machines, which takes minutes; the others take hours.
"""

import argparse
import multiprocessing
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Final

from tests.mutation.mutants import members, mutants
from tests.mutation.runs import BaselineError, Stage, limited, prepare, run, warm_up
from tests.mutation.scores import record
from tests.mutation.targets import TARGETS, Target
from tests.mutation.verdict import Mutant, Verdict, explained, judged

WORDS: Final = (Path("app/protocol/values.py"), Path("participants/holdfast/wire.py"))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.mutation", description=__doc__)
    parser.add_argument("--all", action="store_true", help="all modules, not only the two state machines")
    parser.add_argument("--only", default="", metavar="WORD", help="only modules that have this in their path")
    parser.add_argument("--every", type=int, default=1, metavar="N", help="a sample: every Nth mutant of a module")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="mutants that are tested at a time")
    parser.add_argument("--record", action="store_true", help="write the scores to tests/mutation/scores.toml")
    options = parser.parse_args()
    started = time.monotonic()
    warm_up()
    good = True
    for target in TARGETS:
        if options.only in target.path and (target.is_state_machine or options.all):
            verdict = _in_a_process_of_its_own(target, options.every, options.jobs)
            print(told(target, verdict), flush=True)
            good &= verdict.is_good(target.score_min)
            if options.record:
                record(target.path, verdict)
    print(f"{'as it must be' if good else 'NOT as it must be'}, in {time.monotonic() - started:.0f} s")
    return 0 if good else 1


def _in_a_process_of_its_own(target: Target, every: int, jobs: int) -> Verdict:
    """What one module's tests need is what another's children must import anew."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("fork")) as process:
        return process.submit(tested, target, every, jobs).result()


def tested(target: Target, every: int, jobs: int) -> Verdict:
    """Run the stages of one module."""
    path = Path(target.path)
    made = mutants(path, members(path, *WORDS))
    alive = made[::every]
    keys = {mutant.key for mutant in alive}
    tried, invalid, endless = len(alive), 0, 0
    prepare(target.module)
    for stage in target.stages:
        if not alive:
            break
        alive, of_stage = _survivors(target, stage, alive, jobs)
        invalid += of_stage.count("invalid")
        endless += of_stage.count("endless")
    known = [each for each in explained(target.path) if every == 1 or each.key in keys]
    return judged(len(made), tried, invalid, endless, sorted(alive, key=lambda each: each.line), known)


def _survivors(target: Target, stage: Stage, alive: list[Mutant], jobs: int) -> tuple[list[Mutant], list[str]]:
    """The mutants that get past a stage, and how the others ended."""
    path = Path(target.path)
    started = time.monotonic()
    survived, others = [], []
    for mutant, how in run(target.module, path, alive, limited(target.module, path, stage), jobs):
        if how.survived:
            survived.append(mutant)
        else:
            others.append("invalid" if how.invalid else "endless" if how.endless else "killed")
    took = f"{time.monotonic() - started:.0f} s"
    print(f"{path}: {len(alive)} tried, {len(survived)} survive, {took}: {stage.arguments}", flush=True)
    return survived, others


def told(target: Target, verdict: Verdict) -> str:
    """The verdict, for whoever reads the terminal."""
    sample = "" if verdict.tried == verdict.mutants else f" ({verdict.tried} of them tried)"
    lines = [
        f"{target.path}: {verdict.mutants} mutants{sample}, {verdict.invalid} can't be imported and don't count; "
        f"{verdict.killed} killed ({verdict.endless} because the tests did not end), {verdict.survived} survived: "
        f"{verdict.score:.1f} % (goal {target.score_min:.0f} %)"
    ]
    lines += [f"  explained: {shown(mutant)}\n    {why}" for mutant, why in verdict.explained]
    lines += [f"  NOT EXPLAINED: {shown(mutant)}" for mutant in verdict.unexplained]
    lines += [f"  EXPLAINED, BUT DOES NOT SURVIVE: {' | '.join(key)}" for key in verdict.gone]
    return "\n".join(lines)


def shown(mutant: Mutant) -> str:
    return f"line {mutant.line}, {mutant.within or 'module'}: {mutant.was} → {mutant.becomes}"


if __name__ == "__main__":
    try:
        sys.exit(main())
    except BaselineError as error:
        sys.exit(str(error))
