"""Mutate the two state machines and run their tests: `python -m tests.mutation`. Exit code 1 when a score is below
95 %, when a mutant survives that survivors.toml does not explain, or when one is explained that does not survive.

`--only WORD` keeps the modules that have WORD in their path.
"""

import argparse
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.mutation.mutants import members, mutants
from tests.mutation.runs import BaselineError, Stage, limited, prepare, run, warm_up
from tests.mutation.verdict import SCORE_MIN, Mutant, Verdict, explained, judged

WORDS: Final = (Path("app/protocol/values.py"), Path("participants/holdfast/wire.py"))


@dataclass(frozen=True, slots=True)
class Target:
    """A module, and its tests: the quick ones first, the others for what survives those.

    `unaffected` are modules of ours that don't import it, and need not be imported anew for each mutant.
    """

    path: str
    module: str
    unaffected: tuple[str, ...]
    stages: tuple[Stage, ...]


TARGETS: Final = (
    Target(
        "participants/holdfast/fence/table.py",
        "holdfast.fence.table",
        (),
        (Stage("tests/participant/test_fence_table.py"),),
    ),
    Target(
        "app/protocol/steps.py",
        "app.protocol.steps",
        ("holdfast", "app.protocol.values"),
        (
            Stage("tests/protocol/test_steps.py"),
            Stage("tests/protocol/test_tables.py tests/protocol/test_properties.py -k 'not whatever'"),
        ),
    ),
)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.mutation", description=__doc__)
    parser.add_argument("--only", default="")
    options = parser.parse_args()
    started = time.monotonic()
    warm_up()
    good = True
    for target in TARGETS:
        if options.only in target.path:
            verdict = tested(target)
            print(told(target.path, verdict), flush=True)
            good &= verdict.good
    print(f"{'as it must be' if good else 'NOT as it must be'}, in {time.monotonic() - started:.0f} s")
    return 0 if good else 1


def tested(target: Target) -> Verdict:
    """Run the stages of one module."""
    path = Path(target.path)
    made = mutants(path, members(path, *WORDS))
    alive, invalid, endless = made, 0, 0
    prepare(target.module, target.unaffected)
    for stage in target.stages:
        started = time.monotonic()
        ended = list(run(target.module, path, alive, limited(target.module, path, stage)))
        invalid += sum(how.invalid for _, how in ended)
        endless += sum(how.endless for _, how in ended)
        tried, alive = len(alive), [mutant for mutant, how in ended if how.survived]
        took = f"{time.monotonic() - started:.0f} s"
        print(f"{target.path}: {tried} tried, {len(alive)} survive, {took}: {stage.arguments}", flush=True)
    return judged(len(made), invalid, endless, sorted(alive, key=lambda each: each.line), explained(target.path))


def told(path: str, verdict: Verdict) -> str:
    """The verdict, for whoever reads the terminal."""
    killed = verdict.mutants - verdict.invalid - verdict.survived
    lines = [
        f"{path}: {verdict.mutants} mutants, of which {verdict.invalid} can't be imported and don't count; "
        f"{killed} killed ({verdict.endless} because the tests did not end), {verdict.survived} survived: "
        f"{verdict.score:.1f} % (goal {SCORE_MIN:.0f} %)"
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
