"""make bench: measures, checks, prints tables, and writes results.json and throughput.svg.

make bench                                   # everything but ten million rows, about 8 minutes
make bench ARGS='--only ceiling,postgres-1 --seconds 3'
make bench-size                              # ten million finished rows, half an hour and 15 GB
"""

import argparse
import signal
import sys
from pathlib import Path

from tests.benchmark import report
from tests.benchmark.cases import Case, Duration, main_cases, run
from tests.benchmark.databases import CheckFailed, databases
from tests.benchmark.goals import judge
from tests.benchmark.noop import noop
from tests.benchmark.plot import draw
from tests.benchmark.processes import raise_file_limit
from tests.benchmark.size import size_cases
from tests.harness.repository import ROOT


def main() -> int:
    """Run what was asked for; exit code 1 when a figure can't be trusted."""
    asked = _arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what was started is stopped
    raise_file_limit()
    with databases() as made, noop(bare=asked.bare_participant) as participant:
        print(f"participant: {participant.kind}; PostgreSQL {made.postgres_version()}", file=sys.stderr)
        duration = Duration(seconds=asked.seconds, warmup_s=asked.warmup)
        others = {name: url for name, url in (("dtm", asked.dtm), ("restate", asked.restate)) if url}
        if asked.rows:
            cases = size_cases(made, participant, duration, asked.rows)
        else:
            cases = main_cases(made, participant, duration, asked.unfinished, others)
        chosen = [case for case in cases if not asked.only or case.name in asked.only.split(",")]
        try:
            run(chosen, asked.rounds)
        except CheckFailed as failed:
            print(f"FAILED: {failed}", file=sys.stderr)
            return 1
        about = report.machine(
            postgresql=made.postgres_version(),
            participant=participant.kind,
            rounds=asked.rounds,
            seconds=asked.seconds,
        )
    _report(chosen, about, asked.out, "size" if asked.rows else "results")
    return 0


def _report(cases: list[Case], about: report.Machine, out: Path, name: str) -> None:
    verdicts = judge(cases)
    caption = (
        f"median of {about.rounds} rounds of {about.seconds:g} s, line: least to most; {about.cores} cores, "
        f"Python {about.python}, PostgreSQL {about.postgresql}, participant: {about.participant}"
    )
    print(f"\n{caption}\n\n{report.table(cases)}\n\n{report.goals_table(verdicts)}")
    report.write_json(out / f"{name}.json", about, cases, verdicts)
    if name == "results":
        draw(out / "throughput.svg", cases, caption)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make bench ARGS='…'")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=8, help="how long a round measures")
    parser.add_argument("--warmup", type=float, default=2, help="seconds before it")
    parser.add_argument("--only", default="", help="names of cases, separated by commas")
    parser.add_argument("--out", type=Path, default=ROOT / "docs/benchmarks", help="where the files go")
    parser.add_argument("--bare-participant", action="store_true", help="not nginx, even if it is installed")
    parser.add_argument("--unfinished", type=int, default=100_000, help="transactions found at start")
    parser.add_argument("--rows", type=int, help="instead of everything else: with so many finished transactions")
    parser.add_argument("--dtm", metavar="URL", help="a running DTM server: http://host:36789/api/dtmsvr")
    parser.add_argument("--restate", metavar="URL", help="the ingress of a running Restate: http://host:8080")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
