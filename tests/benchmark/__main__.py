"""make bench: measures, checks, prints tables, and writes results.json and throughput.svg.

make bench                                   # everything but ten million rows, about 8 minutes
make bench ARGS='--case ceiling,postgres-1 --seconds 3'
make bench-size                              # ten million finished rows, half an hour and 15 GB
make bench ARGS='--against ../before'        # ratios to another checkout: see against.py
"""

import argparse
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from tests.benchmark import against, report
from tests.benchmark.cases import Case, Duration, main_cases, run
from tests.benchmark.checkout import BadCheckout, open_checkout
from tests.benchmark.databases import CheckFailed, databases
from tests.benchmark.goals import judge
from tests.benchmark.noop import noop
from tests.benchmark.processes import raise_file_limit
from tests.benchmark.size import size_cases
from tests.harness.repository import ROOT

_Named = TypeVar("_Named", Case, against.Comparison)


class UnknownCase(Exception):
    """A case was asked for that there is not; names those that there are."""


def main(arguments: list[str] | None = None) -> int:
    """Run what was asked for; exit code 1 when a figure can't be trusted, 2 when the question can't be answered."""
    asked = _arguments(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what was started is stopped
    raise_file_limit()
    try:
        return _compare(asked) if asked.against else _measure(asked)
    except (CheckFailed, against.CannotRun) as failed:
        print(f"FAILED: {failed}", file=sys.stderr)
        return 1
    except (BadCheckout, UnknownCase) as wrong:
        print(wrong, file=sys.stderr)
        return 2


def _compare(asked: argparse.Namespace) -> int:
    other = open_checkout(asked.against)
    chosen = _chosen(against.COMPARISONS, asked.case)
    with databases() as made, noop(bare=asked.bare_participant) as participant:
        compared = against.compare(
            chosen,
            other,
            made,
            participant,
            rounds=asked.rounds or 10,
            transactions=asked.transactions,
        )
    print(f"\n{against.report(compared, other)}")
    return 0


def _measure(asked: argparse.Namespace) -> int:
    rounds = asked.rounds or 3
    with databases() as made, noop(bare=asked.bare_participant) as participant:
        print(f"participant: {participant.kind}; PostgreSQL {made.postgres_version()}", file=sys.stderr)
        duration = Duration(seconds=asked.seconds, warmup_s=asked.warmup)
        others = {name: url for name, url in (("dtm", asked.dtm), ("restate", asked.restate)) if url}
        if asked.rows:
            cases = size_cases(made, participant, duration, asked.rows)
        else:
            cases = main_cases(made, participant, duration, asked.unfinished, others)
        chosen = _chosen(cases, asked.case)
        run(chosen, rounds)
        about = report.machine(
            postgresql=made.postgres_version(),
            participant=participant.kind,
            rounds=rounds,
            seconds=asked.seconds,
        )
    _report(chosen, about, asked.out, "size" if asked.rows else "results")
    return 0


def _chosen(cases: Sequence[_Named], names: str) -> list[_Named]:
    """Those of these names, separated by commas; all when there are none."""
    known = [case.name for case in cases]
    wanted = names.split(",") if names else known
    if unknown := [name for name in wanted if name not in known]:
        raise UnknownCase(f"no such case: {', '.join(unknown)}; there are {', '.join(known)}")
    return [case for case in cases if case.name in wanted]


def _report(cases: list[Case], about: report.Machine, out: Path, name: str) -> None:
    verdicts = judge(cases)
    caption = (
        f"median of {about.rounds} rounds of {about.seconds:g} s, line: least to most; {about.cores} cores, "
        f"Python {about.python}, PostgreSQL {about.postgresql}, participant: {about.participant}"
    )
    print(f"\n{caption}\n\n{report.table(cases)}\n\n{report.goals_table(verdicts)}")
    report.write_json(out / f"{name}.json", about, cases, verdicts)
    if name == "results":
        from tests.benchmark.plot import draw  # what draws is installed for `make bench` alone

        draw(out / "throughput.svg", cases, caption)


def _arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make bench ARGS='…'")
    parser.add_argument("--rounds", type=_count, help="default: 3; with --against 10")
    parser.add_argument("--seconds", type=float, default=8, help="how long a round measures")
    parser.add_argument("--warmup", type=float, default=2, help="seconds before it")
    parser.add_argument("--case", "--only", default="", help="names of cases, separated by commas; default: all")
    parser.add_argument("--out", type=Path, default=ROOT / "docs/benchmarks", help="where the files go")
    parser.add_argument("--bare-participant", action="store_true", help="not nginx, even if it is installed")
    parser.add_argument("--unfinished", type=int, default=100_000, help="transactions found at start")
    parser.add_argument("--rows", type=int, help="instead of everything else: with so many finished transactions")
    parser.add_argument("--dtm", metavar="URL", help="a running DTM server: http://host:36789/api/dtmsvr")
    parser.add_argument("--restate", metavar="URL", help="the ingress of a running Restate: http://host:8080")
    parser.add_argument(
        "--against", type=Path, metavar="FOLDER", help="instead: ratios to another checkout of Holdfast"
    )
    parser.add_argument("--transactions", type=_count, help="with --against: in a turn; default: as the case says")
    return parser.parse_args(arguments)


def _count(text: str) -> int:
    count = int(text)
    if count < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return count


if __name__ == "__main__":
    sys.exit(main())
