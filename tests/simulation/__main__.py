"""`python -m tests.simulation --seeds 2000` runs many seeds on all cores; `--seed 7` replays one of them."""

import argparse
import os
import sys
import time
from collections import Counter
from typing import Final

from tests.simulation.report import failure, never_met, table
from tests.simulation.seeds import results_of
from tests.simulation.shrink import shrink
from tests.simulation.world import Result, run_seed

FAILURES_SHOWN_MAX: Final = 3
PROGRESS_S: Final = 30.0


def main() -> int:
    arguments = _arguments()
    if arguments.seed is not None:
        return _replay(arguments.seed)
    started = time.monotonic()
    fired: Counter[str] = Counter()
    failed: list[Result] = []
    seeds = transactions = 0
    shown_at = started
    for result in results_of(range(arguments.first, arguments.first + arguments.seeds), arguments.workers):
        seeds += 1
        transactions += result.transactions
        fired += result.fired
        if result.violations:
            failed.append(result)
            print(f"seed {result.seed}: {result.violations[0].rule}: {result.violations[0].what}", flush=True)
        if time.monotonic() - shown_at > PROGRESS_S:
            shown_at = time.monotonic()
            print(f"  {seeds:,} seeds, {len(failed)} failed", flush=True)
    took_s = time.monotonic() - started
    print(f"simulation: {seeds:,} seeds from {arguments.first}, {transactions:,} transactions, {len(failed)} failed")
    print(f"  {seeds / took_s:.1f} seeds/s on {arguments.workers} cores, {seeds / took_s / arguments.workers:.1f} each")
    print("\n".join(table(fired)))
    for result in failed[:FAILURES_SHOWN_MAX]:
        print("\n".join(failure(result, shrink(result.seed, result))))
    missing = never_met(fired, seeds)
    if missing:
        print(f"FAILED: never met in {seeds:,} seeds: {', '.join(missing)}")
    return 1 if failed or missing else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seed", type=int, help="replay this one, with its timeline")
    parser.add_argument("--seeds", type=int, default=2000, help="how many (default: 2000)")
    parser.add_argument("--first", type=int, default=1, help="from which on (default: 1)")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes (default: all cores)")
    return parser.parse_args()


def _replay(seed: int) -> int:
    result = run_seed(seed, keeps_timeline=True)
    print("\n".join(result.timeline))
    print(f"seed {seed}: {result.transactions} transactions, {result.virtual_s:.1f} virtual s, trace {result.trace}")
    if result.violations:
        print("\n".join(failure(result, shrink(seed, result))))
    return 1 if result.violations else 0


if __name__ == "__main__":
    sys.exit(main())
