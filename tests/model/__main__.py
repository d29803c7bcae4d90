"""Search the model of the protocol: `python -m tests.model`. Exit code 1 when something is not as it must be.

`--write-tables` writes tables.pml from the code's tables; `--only WORD` keeps what has WORD in its name; `--steps`
tells each counterexample.
"""

import argparse
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor

from tests.model import tables
from tests.model.searches import CONFIGURATIONS, MISTAKES, REACHED
from tests.model.spin import Found, SpinError, run, why_no_spin


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.model", description=__doc__)
    parser.add_argument("--write-tables", action="store_true")
    parser.add_argument("--only", default="")
    parser.add_argument("--steps", action="store_true")
    options = parser.parse_args()
    if options.write_tables:
        tables.FILE.write_text(tables.text(), encoding="utf-8")
        return 0
    if tables.FILE.read_text(encoding="utf-8") != tables.text():
        print("tests/model/tables.pml is not what the code's tables are now: python -m tests.model --write-tables")
        return 1
    if missing := why_no_spin():
        print(missing)
        return 1
    return 0 if search(options.only, tell=options.steps) else 1


def search(only: str, *, tell: bool) -> bool:
    """Make all searches of that name; whether each came out as it must."""
    started = time.monotonic()
    wanted = [each for each in (*reversed(CONFIGURATIONS), *MISTAKES, *REACHED) if only in each.name]
    good = 0
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        for made in [threads.submit(run, each) for each in wanted]:
            try:
                found = made.result()
            except SpinError as error:
                print(error)
                continue
            good += found.is_as_expected
            print(line(found))
            if found.told and (tell or not found.is_as_expected):
                print("".join(f"    {step}\n" for step in found.told), end="")
    print(f"{good} of {len(wanted)} searches came out as they must, in {time.monotonic() - started:.0f} s")
    return 0 < good == len(wanted)


def line(found: Found) -> str:
    """What came of a search, on one line."""
    verdict = "as it must" if found.is_as_expected else "WRONG"
    what = f"violated in {found.steps} steps" if found.violation else "holds"
    counted = f"{found.states:>11,} states {found.seconds:>6.1f} s {found.memory_mb:>6.0f} MB"
    return f"{found.search.name:<26} {verdict:<10} {what:<22} {counted}"


if __name__ == "__main__":
    sys.exit(main())
