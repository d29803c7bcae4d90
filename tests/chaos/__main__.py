"""One chaos run: `python -m tests.chaos --minutes 2 --replicas 3 --seed 7`. Exit code 1 when a rule was violated."""

import argparse
import random
import re
import shutil
import signal
import sys
import threading
import time
from collections import defaultdict
from contextlib import suppress
from typing import Final

import httpx

from tests.chaos import report
from tests.chaos.disks import separate
from tests.chaos.gathering import Rest, dump, gather
from tests.chaos.keys import ShownKey
from tests.chaos.nemesis import FULL, Kind, Nemesis, plan
from tests.chaos.processes import OldReplica, ParticipantProcess, Replica, wait_ready
from tests.chaos.system import START_MAX_S, SystemUnderTest
from tests.harness import ledger
from tests.harness.checker import check, stale_reads
from tests.harness.evidence import Evidence
from tests.harness.server_process import temporary_home

SETTLE_MAX_S: Final = 60.0
"""Within this time after everything works again, every transaction must be finished."""
EVERYTHING_S: Final = 300.0
"""A run of so many seconds does everything that can be done, or fails."""
DRAIN_MAX_S: Final = 10.0
"""How long participants may take to answer what is stalled in them, when they are asked to stop."""
HISTORIES_MAX: Final = 2_000
_CLAIMED: Final = re.compile(r"^holdfast_transactions_claimed_total (\S+)", re.MULTILINE)


class Sampler(threading.Thread):
    """Reads a counter of every replica each second: what a killed one had counted is gone with it."""

    def __init__(self, system: SystemUnderTest) -> None:
        super().__init__(name="sampler", daemon=True)
        self._system = system
        self._shown_key = ShownKey(system.folder)
        self._seen: dict[tuple[str, int], float] = {}
        self._stopping = threading.Event()

    @property
    def claimed(self) -> int:
        return int(sum(self._seen.values()))

    def run(self) -> None:
        with httpx.Client(timeout=1.0) as client:
            while not self._stopping.wait(1.0):
                for replica in self._system.replicas:
                    if replica.running:
                        self._sample(client, replica.name, replica.lives, replica.url)

    def _sample(self, client: httpx.Client, name: str, life: int, url: str) -> None:
        with suppress(httpx.HTTPError):
            found = _CLAIMED.search(client.get(f"{url}/metrics", headers=self._shown_key.headers()).text)
            if found:
                self._seen[name, life] = float(found[1])

    def stop(self) -> None:
        self._stopping.set()
        self.join()


def run(system: SystemUnderTest, *, seconds: float, seed: str) -> tuple[bool, str]:
    """Load and nemesis, quiescence, evidence, checker; whether all is well, and the report."""
    wall_ahead_s = time.time() - time.monotonic()
    started_at = time.monotonic()
    sampler = Sampler(system)
    sampler.start()
    system.clients.start()
    replicas, participants = len(system.replicas), len(system.participants)
    without = set[Kind]() if system.disks else set(FULL)
    nemesis = Nemesis(
        system, plan(seed, seconds=seconds, replicas=replicas, participants=participants, without=without)
    )
    nemesis.run(seconds)
    nemesis.heal()
    system.faults_file.unlink()
    _wait_until_all_work(system, nemesis)
    healed_at = time.monotonic()
    rest = Rest([replica.url for replica in system.replicas], wall_ahead_s, ShownKey(system.folder))
    complaints = nemesis.fault_log.complaints
    if seconds >= EVERYTHING_S:
        if system.old_replica is None:
            without.add(Kind.KILL_OLD)
        complaints += [f"never done: {what}" for what in nemesis.fault_log.missing(without)]
    complaints += settle(system, nemesis, rest)
    settled_s = time.monotonic() - healed_at
    sampler.stop()
    evidence = _evidence(system, rest)
    rest.close()
    violations = check(evidence)
    stale = stale_reads(evidence)
    dump(evidence, system.folder / "coordinator.jsonl")
    lines = list(
        report.summary(
            evidence,
            nemesis.fault_log,
            violations,
            stale,
            replicas=replicas,
            claimed=sampler.claimed,
            rotated=system.keys.rotated,
            seconds=healed_at - started_at,
            settled_s=settled_s,
        )
    )
    lines += report.cpu(_cpu_s(system), len(evidence.known))
    lines += [f"left out             {each}" for each in system.left_out]
    if system.old_commit is not None:
        lines.append(f"old code             one replica of {system.old_commit}, until the end")
    lines += report.explain(violations, complaints)
    (system.folder / "report.txt").write_text("\n".join(lines) + "\n")
    (system.folder / "timelines.txt").write_text("\n".join(report.timelines(evidence, violations, started_at)) + "\n")
    return not violations and not complaints, "\n".join(lines)


def _cpu_s(system: SystemUnderTest) -> dict[str, float]:
    """By sort of process."""
    spent: dict[str, float] = defaultdict(float)
    for process in system.everybody:
        sort = {Replica: "replicas", OldReplica: "old code", ParticipantProcess: "participants"}
        spent[sort.get(type(process), process.name)] += process.cpu_s
    return dict(spent)


def _wait_until_all_work(system: SystemUnderTest, nemesis: Nemesis) -> None:
    """How long processes take to start is the machine's affair, and no promise of anybody's."""
    until = time.monotonic() + START_MAX_S
    while not all(process.ready for process in system.processes) and time.monotonic() < until:
        nemesis.look_after()
    for replica in system.replicas:
        wait_ready(replica, START_MAX_S)


def settle(system: SystemUnderTest, nemesis: Nemesis, rest: Rest) -> list[str]:
    """Wait until clients have been answered and nothing is under way; what is wrong when that takes too long."""
    until = time.monotonic() + SETTLE_MAX_S
    system.clients.wanted = False
    system.clients.send(signal.SIGTERM)
    while system.clients.alive and time.monotonic() < until:
        nemesis.look_after()
    if system.clients.alive:
        return [f"clients were not answered within {SETTLE_MAX_S:g} s of quiet"]
    if system.clients.status != 0:
        return [f"the clients broke: {system.clients.log.read_text()[-2000:]}"]
    while time.monotonic() < until:
        if not rest.unfinished() and not rest.hung():
            return []
        nemesis.look_after()
    return [f"something is unfinished {SETTLE_MAX_S:g} s after all worked again; hung: {rest.hung()[:5]}"]


def _evidence(system: SystemUnderTest, rest: Rest) -> Evidence:
    """Participants stop first, which lets them answer what was stalled: then their ledgers stand still."""
    for participant in system.participants:
        participant.wanted = False
        participant.send(signal.SIGTERM)
    for participant in system.participants:
        participant.wait_end(DRAIN_MAX_S)
        participant.kill()
    engines = {each.name: ledger.open_database(each.config.database_url) for each in system.participants}
    try:
        return gather(system.folder, engines, rest, histories_max=HISTORIES_MAX)
    finally:
        for engine in engines.values():
            engine.dispose()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--minutes", type=float, default=2.0, help="how long faults last")
    parser.add_argument("--replicas", type=int, default=3, help="coordinators on one database")
    parser.add_argument("--clients", type=int, default=128, help="clients, each with one transaction at a time")
    parser.add_argument("--seed", default="", help="what is done to whom, and when; drawn when it is left out")
    parser.add_argument("--keep", action="store_true", help="keep the logs of a run without violations too")
    asked = parser.parse_args()
    seed = asked.seed or str(random.SystemRandom().randrange(10**9))
    folder = temporary_home("holdfast-chaos-")
    folder.chmod(0o711)  # PostgreSQL runs as somebody else, in a folder of its own within
    no_disks = separate()
    print(f"chaos: {asked.minutes:g} minutes, {asked.replicas} replicas, seed {seed}", flush=True)
    try:
        with SystemUnderTest(
            folder, replicas=asked.replicas, clients=asked.clients, seed=seed, disks_may_fill=no_disks is None
        ) as system:
            if no_disks is not None:
                system.left_out.append(f"full disks: no mounts of our own ({no_disks})")
            well, text = run(system, seconds=asked.minutes * 60, seed=seed)
    except BaseException:
        print(f"logs: {folder}")
        raise
    print(text)
    if well and not asked.keep:
        shutil.rmtree(folder)
    else:
        print(f"logs, notes and timelines: {folder}")
    print(f"again: make chaos MINUTES={asked.minutes:g} REPLICAS={asked.replicas} CLIENTS={asked.clients} SEED={seed}")
    return 0 if well else 1


if __name__ == "__main__":
    sys.exit(main())
