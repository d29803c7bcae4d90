"""`make enumerate`: every state of all pairs of kinds in every order, and of some triples; a line for each."""

import argparse
import sys
import time

from tests.protocol.enumeration import PAIRS, TRIPLES, enumerate_all, steps_to_the_end
from tests.protocol.invariants import Violation


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.protocol", description=__doc__)
    parser.add_argument("--only", default="", help="cases whose name contains this")
    only = parser.parse_args().only
    broken = 0
    for case in [case for case in (*PAIRS, *TRIPLES) if only in case.name]:
        began = time.monotonic()
        try:
            run = enumerate_all([case])
            longest = max(steps_to_the_end(state) for state in run.states)
        except (Violation, AssertionError) as e:
            broken += 1
            print(f"{case.name}: BROKEN\n{e}", flush=True)
            continue
        took_s = time.monotonic() - began
        print(
            f"{case.name}: {len(run.states)} states, {run.steps} steps, ends in {longest}, {took_s:.0f} s", flush=True
        )
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
