"""What is done to whom, and when: first a plan, drawn from one seeded source; then doing it.

`plan` is pure: the same seed gives the same plan. `Nemesis` carries it out, starts again what has ended (as whatever
looks after processes would), and keeps a log of what was down and when. It never looks at transactions.
"""

import heapq
import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Set
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field, replace
from enum import StrEnum
from itertools import cycle, repeat
from pathlib import Path
from typing import Final, TypeVar

from app.storage.limited_connection import SILENCE_MAX_S
from tests.chaos.disks import Disk
from tests.chaos.processes import STOP_MAX_S, ParticipantProcess, Process, Replica
from tests.chaos.proxy import LinkPorts, Mode, Place
from tests.chaos.replica import NAME, Trouble
from tests.chaos.system import LEASE_S, PARTICIPANTS, SystemUnderTest

TICK_S: Final = 0.1
PAUSE_MEAN_S: Final = 2.8
CPU_LOOK_S: Final = 1.0
LINKS_MAX: Final = 10_000
DELAY_S: Final = (0.02, 0.4)
SETS_S: Final = (2.0, 300.0, 70 * 86_400.0)
"""By how much a machine's clock is set at the most, forward or back."""
RESTART_PAUSE_S: Final = 0.5
"""How soon a process that ended by itself is started again, such as a replica that found no database."""


class Kind(StrEnum):
    """What can be done."""

    KILL_REPLICA = "SIGKILL of a replica"
    KILL_AGAIN = "SIGKILL of a replica, and again when it is back"
    KILL_ALL_REPLICAS = "SIGKILL of all replicas"
    FREEZE_SHORT = "SIGSTOP for less than a lease"
    FREEZE_LONG = "SIGSTOP for longer than a lease"
    TERMINATE_REPLICA = "SIGTERM of a replica"
    KILL_PARTICIPANT = "SIGKILL of a participant"
    KILL_BOTH = "SIGKILL of a replica and a participant"
    CRASH_POSTGRES = "PostgreSQL immediate"
    CRASH_IN_RECOVERY = "SIGKILL of a replica, PostgreSQL immediate in its recovery"
    FULL_POSTGRES = "disk of PostgreSQL full"
    FULL_PARTICIPANT = "disk of a participant full"
    PARTITION_CLIENTS = "no way between clients and a replica"
    PARTITION_PARTICIPANT = "no way between replicas and a participant"
    PARTITION_DATABASE = "no way between a replica and PostgreSQL"
    LATENCY = "latency on a link"
    RESET_LINK = "all connections of a link reset"
    DEAD_ORIGINS = "all participants but one swallow everything"
    NAMES_HANG = "look-ups of names hang"
    NAMES_FAIL = "look-ups of names fail"
    PAUSE_MACHINE = "a replica's machine stands still, and its clocks with it"
    SET_CLOCK = "clock of a replica's machine set"
    READ_ONLY = "PostgreSQL only reads"
    FREEZE_BACKEND = "SIGSTOP of a backend of PostgreSQL"
    KILL_OLD = "SIGKILL of the replica with old code, for good"


BAG: Final = {
    Kind.KILL_REPLICA: 5,
    Kind.KILL_AGAIN: 2,
    Kind.KILL_ALL_REPLICAS: 1,
    Kind.FREEZE_SHORT: 1,
    Kind.FREEZE_LONG: 2,
    Kind.TERMINATE_REPLICA: 1,
    Kind.KILL_PARTICIPANT: 4,
    Kind.KILL_BOTH: 1,
    Kind.CRASH_POSTGRES: 1,
    Kind.CRASH_IN_RECOVERY: 1,
    Kind.FULL_POSTGRES: 1,
    Kind.FULL_PARTICIPANT: 1,
    Kind.PARTITION_CLIENTS: 1,
    Kind.PARTITION_PARTICIPANT: 1,
    Kind.PARTITION_DATABASE: 2,
    Kind.LATENCY: 2,
    Kind.RESET_LINK: 1,
    Kind.DEAD_ORIGINS: 1,
    Kind.NAMES_HANG: 1,
    Kind.NAMES_FAIL: 1,
    Kind.PAUSE_MACHINE: 2,
    Kind.SET_CLOCK: 2,
    Kind.READ_ONLY: 1,
    Kind.FREEZE_BACKEND: 2,
}
"""How often each comes up in one round; a round is drawn in a random order, so that none is missing for long."""

FIRST: Final = {Kind.KILL_REPLICA, Kind.FREEZE_LONG, Kind.CRASH_POSTGRES}
"""What even the shortest run is to do."""

FULL: Final = {Kind.FULL_POSTGRES: "postgres", Kind.FULL_PARTICIPANT: PARTICIPANTS[0]}
"""Which disk it is."""

PARTED: Final = {
    Kind.PARTITION_CLIENTS: Place.CLIENTS,
    Kind.PARTITION_PARTICIPANT: Place.PARTICIPANT,
    Kind.PARTITION_DATABASE: Place.DATABASE,
}
ON_LINKS: Final = {*PARTED, Kind.LATENCY, Kind.RESET_LINK}
FREEZES: Final = {Kind.FREEZE_SHORT, Kind.FREEZE_LONG}
TROUBLES: Final = {Kind.NAMES_HANG: Trouble.HANG, Kind.NAMES_FAIL: Trouble.FAIL}
CLOCKS: Final = {Kind.PAUSE_MACHINE, Kind.SET_CLOCK}
ON_POSTGRES: Final = {Kind.READ_ONLY, Kind.FREEZE_BACKEND}
BACKEND: Final = "postgres-backend"
NO_KILLS: Final = {
    *(*ON_LINKS, *FREEZES, *FULL, *TROUBLES, *CLOCKS, *ON_POSTGRES),
    *(Kind.DEAD_ORIGINS, Kind.TERMINATE_REPLICA),
}
"""What doesn't kill anybody: not by itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Action:
    """What to do after `pause_s` seconds in which clients could get something done.

    `down_s` is how long what was hit stays away; `gap_s` lies between two blows of one action. `link` counts those
    that the kind is for, as often round as it takes.
    """

    pause_s: float
    kind: Kind
    replica: int
    participant: int
    link: int
    mode: Mode
    down_s: float
    gap_s: float
    delay_s: float
    set_by_s: float


def plan(
    seed: str, *, seconds: float, replicas: int, participants: int, without: Set[Kind] = frozenset()
) -> Iterator[Action]:
    """What is to happen, without end, and `without` what can't be done here.

    In a short run it happens faster, so that all of it happens. A replica too many is the one with old code.
    """
    draw = random.Random(seed)
    mean_s = min(PAUSE_MEAN_S, seconds / (sum(BAG.values()) + 1))
    modes: dict[Kind, Iterator[Mode]] = {  # no place lacks one for long
        kind: cycle(draw.sample([Mode.CUT, Mode.SWALLOW], 2)) for kind in PARTED
    }
    modes |= {Kind.LATENCY: repeat(Mode.DELAY), Kind.RESET_LINK: repeat(Mode.RESET)}
    first = True
    while True:
        kinds = [kind for kind, count in BAG.items() for _ in range(count)]
        draw.shuffle(kinds)
        if first:
            kinds.sort(key=lambda kind: kind not in FIRST)
            first = False
        for kind in kinds:
            action = Action(
                pause_s=mean_s * draw.uniform(0.2, 1.8),
                kind=kind,
                replica=draw.randrange(replicas + (kind in FREEZES)),
                participant=draw.randrange(participants),
                link=draw.randrange(LINKS_MAX),
                mode=next(modes[kind]) if kind in modes else Mode.PASS,
                down_s=_down_s(draw, kind),
                gap_s=draw.uniform(0.2, LEASE_S + 1.0),
                delay_s=draw.uniform(*DELAY_S),
                set_by_s=draw.choice(SETS_S) * draw.uniform(-1.0, 1.0),
            )
            if kind not in without:
                yield action


def _down_s(draw: random.Random, kind: Kind) -> float:
    match kind:
        case Kind.FREEZE_SHORT:
            return draw.uniform(0.2, 0.8) * LEASE_S
        case Kind.PAUSE_MACHINE:
            return draw.uniform(0.2, 2.5) * LEASE_S
        case Kind.FREEZE_LONG:
            return draw.uniform(1.2, 2.5) * LEASE_S
        case Kind.CRASH_POSTGRES | Kind.CRASH_IN_RECOVERY:
            return draw.uniform(0.0, 1.0)
        case Kind.FULL_POSTGRES | Kind.FULL_PARTICIPANT:
            return draw.uniform(1.0, 4.0)
        case Kind.PARTITION_CLIENTS | Kind.PARTITION_PARTICIPANT | Kind.PARTITION_DATABASE:
            return draw.uniform(0.5, 2.0 * LEASE_S)
        case Kind.LATENCY | Kind.DEAD_ORIGINS:
            return draw.uniform(1.0, 6.0)
        case Kind.NAMES_HANG | Kind.NAMES_FAIL:  # longer than addresses are remembered
            return draw.uniform(4.0, 10.0)
        case Kind.RESET_LINK:
            return 0.0
        case Kind.READ_ONLY:
            return draw.uniform(0.5, 4.0)
        case Kind.FREEZE_BACKEND:  # now and then longer than anybody waits for one
            return draw.uniform(SILENCE_MAX_S, SILENCE_MAX_S + 3.0) if draw.random() < 0.3 else draw.uniform(0.5, 4.0)
    return draw.uniform(0.0, 2.0)


@dataclass(slots=True, kw_only=True)
class Outage:
    """From when to when something was away. `kind` is how it went."""

    target: str
    kind: Kind
    since: float
    until: float | None = None


@dataclass(slots=True)
class FaultLog:
    """What the nemesis did."""

    outages: list[Outage] = field(default_factory=list)
    counts: Counter[Kind] = field(default_factory=Counter)
    modes: Counter[tuple[Mode, Place]] = field(default_factory=Counter)
    restarts: int = 0
    complaints: list[str] = field(default_factory=list)
    """What no process may do, however it is treated."""

    def missing(self, without: Set[Kind]) -> Iterator[str]:
        """What was to be done and never was: a run that doesn't do it proves nothing about it."""
        yield from (str(kind) for kind in Kind if kind not in without and not self.counts[kind])
        for kind, place in PARTED.items():
            for mode in (Mode.CUT, Mode.SWALLOW):
                if kind not in without and not self.modes[mode, place]:
                    yield f"{mode} between {place}"

    @property
    def kills(self) -> int:
        """How many times a process was killed: SIGKILL, or PostgreSQL's "immediate"."""
        return sum(self.kills_by_target.values())

    @property
    def kills_by_target(self) -> Counter[str]:
        """Who was killed how often: replicas, participants, PostgreSQL."""
        return Counter(_sort_of(outage.target) for outage in self.outages if outage.kind not in NO_KILLS)


def _sort_of(target: str) -> str:
    if target == "postgres":
        return "PostgreSQL"
    return "replicas" if target.startswith("replica-") else "participants"


class Nemesis:
    """Carries a plan out on a system; `heal` undoes what is left of it."""

    def __init__(self, system: SystemUnderTest, actions: Iterator[Action]) -> None:
        self.fault_log = FaultLog()
        self._system = system
        self._actions = actions
        self._log: Path = system.folder / "nemesis.log"
        self._started_at = time.monotonic()
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._order = iter(range(10**9))
        self._never = threading.Event()
        self._outages: dict[str, Outage] = {}
        self._postgres_start: Future[None] | None = None
        self._is_away = False
        """PostgreSQL was crashed, and is not to be started yet."""
        self._reads_only = False
        self._frozen_backend: int | None = None
        self._full: set[str] = set()
        self._cpu_due_at = 0.0

    def run(self, seconds: float) -> None:
        """Do what is planned, one after another, until the time is over."""
        until = self._started_at + seconds
        works_since = time.monotonic()
        action = next(self._actions)
        while (now := time.monotonic()) < until:
            if not self._works():
                works_since = now
            if now - works_since >= action.pause_s and self._do(action):
                action, works_since = next(self._actions), now
            self._tick()

    def _works(self) -> bool:
        """Whether clients can get anything done: on a slow machine a replica takes long to start."""
        is_stuck = any(name in self._outages for name in ("postgres", *FULL.values()))
        return not is_stuck and any(replica.ready for replica in self._system.replicas)

    def heal(self) -> None:
        """Everything that was hit comes back but the old code, and nothing more happens."""
        self._say("heal everything")
        self._due.clear()
        for link in self._system.links:
            self._restore(link)
        self._find_names()
        self._thaw_backend()
        self._let_write()
        for name, disk in self._system.disks.items():
            if name in self._full:
                self._free(disk)
        if self._postgres_start is None and not self._system.postgres.running:
            self._start_postgres()
        for process in self._system.everybody:
            if process.frozen:
                self._thaw(process)
        old = self._system.old_replica
        if old is not None and old.alive:
            self._open_outage(old.name, Kind.KILL_OLD)
            self.fault_log.counts[Kind.KILL_OLD] += 1
            self._say(f"SIGKILL {old.name}, for good")
            old.kill()
        for process in self._system.processes:
            if not process.alive:
                self._start(process)
            elif not process.wanted:  # it was asked to stop: let it, and then it comes back
                self._watch_end(process, time.monotonic())

    def look_after(self) -> None:
        """Start again what has ended; to be called while something is waited for."""
        self._tick()

    def _tick(self) -> None:
        now = time.monotonic()
        self._notice_postgres()
        while self._due and self._due[0][0] <= now:
            heapq.heappop(self._due)[2]()
        for process in self._system.processes:
            if process.name in self._outages and process.ready:
                self._close_outage(process.name)
            if process.wanted and not process.alive:
                self.fault_log.restarts += 1
                self._say(f"{process.name} ended by itself with {process.status}, start it again")
                process.wanted = False
                self._plan(now + RESTART_PAUSE_S, lambda process=process: self._start(process))  # type: ignore[misc]
        self._look_at_old_code()
        if now >= self._cpu_due_at:
            self._cpu_due_at = now + CPU_LOOK_S
            for process in self._system.everybody:
                process.look_at_cpu()
        self._never.wait(TICK_S)

    def _look_at_old_code(self) -> None:
        """It has no reason to end, whatever happens around it, and can't come back on the new schema."""
        old = self._system.old_replica
        if old is not None and old.name in self._outages and old.ready:
            self._close_outage(old.name)
        if old is not None and old.wanted and not old.alive:
            old.wanted = False
            self._complain(f"{old.name}, with the code of {self._system.old_commit}, ended by itself with {old.status}")

    def _plan(self, at: float, what: Callable[[], None]) -> None:
        heapq.heappush(self._due, (at, next(self._order), what))

    def _do(self, action: Action) -> bool:
        """Whether it was done: what it is for may be down already."""
        if action.kind in ON_LINKS:
            return self._hit_link(action)
        if action.kind in FULL:
            return self._fill(action)
        if action.kind in TROUBLES:
            return self._trouble_names(action)
        if action.kind is Kind.DEAD_ORIGINS:
            return self._swallow_all_but_one(action)
        if action.kind in CLOCKS:
            return self._trouble_clocks(action)
        if action.kind in ON_POSTGRES:
            return self._trouble_postgres(action)
        old = [self._system.old_replica] if self._system.old_replica is not None and action.kind in FREEZES else []
        replica = next(_ready_from([*self._system.replicas, *old], action.replica), None)
        participant = next(_ready_from(self._system.participants, action.participant), None)
        victims = self._victims(action.kind, replica, participant)
        hits_postgres = action.kind in (Kind.CRASH_POSTGRES, Kind.CRASH_IN_RECOVERY)
        missing = not victims and action.kind is not Kind.CRASH_POSTGRES
        if missing or (hits_postgres and "postgres" in self._outages):
            return False
        self.fault_log.counts[action.kind] += 1
        for victim in victims:
            self._hit(victim, action)
        if action.kind is Kind.CRASH_POSTGRES:
            self._crash_postgres(action)
        elif action.kind is Kind.CRASH_IN_RECOVERY:
            self._plan(time.monotonic() + action.gap_s, lambda: self._crash_postgres(action))
        return True

    def _victims(self, kind: Kind, replica: Replica | None, participant: ParticipantProcess | None) -> list[Process]:
        match kind:
            case Kind.KILL_ALL_REPLICAS:
                return [each for each in self._system.replicas if each.running and each.wanted]
            case Kind.KILL_PARTICIPANT:
                return [participant] if participant else []
            case Kind.KILL_BOTH:
                return [replica, participant] if replica and participant else []
            case Kind.CRASH_POSTGRES:
                return []
        return [replica] if replica else []

    def _hit(self, victim: Process, action: Action) -> None:
        now = time.monotonic()
        self._open_outage(victim.name, action.kind)
        match action.kind:
            case Kind.FREEZE_SHORT | Kind.FREEZE_LONG:
                victim.freeze()
                self._say(f"SIGSTOP {victim.name} for {action.down_s:.2f} s")
                self._plan(now + action.down_s, lambda: self._thaw(victim))
            case Kind.TERMINATE_REPLICA:
                victim.wanted = False
                victim.send(signal.SIGTERM)
                self._say(f"SIGTERM {victim.name}")
                self._watch_end(victim, now)
            case _:
                victim.kill()
                self._say(f"SIGKILL {victim.name}, back in {action.down_s:.2f} s")
                self._plan(now + action.down_s, lambda: self._start(victim))
                if action.kind is Kind.KILL_AGAIN:
                    self._plan(now + action.down_s + action.gap_s, lambda: self._hit_again(victim, action))

    def _hit_again(self, victim: Process, action: Action) -> None:
        """In its start or in its recovery, as it happens to be."""
        if victim.running and victim.wanted:
            self._hit(victim, replace(action, kind=Kind.KILL_REPLICA))

    def _watch_end(self, process: Process, since: float) -> None:
        """A process that was asked to stop: start it again once it has, and complain when it doesn't, or fails."""
        if not process.alive:
            if process.status not in (0, -signal.SIGKILL) and not process.gave_up_stopping:
                self._complain(f"{process.name} ended with {process.status} after SIGTERM")
            self._start(process)
        elif time.monotonic() - since > STOP_MAX_S:
            self._complain(f"{process.name} did not end within {STOP_MAX_S:g} s of SIGTERM")
            process.kill()
            self._start(process)
        else:
            self._plan(time.monotonic() + TICK_S, lambda: self._watch_end(process, since))

    def _hit_link(self, action: Action) -> bool:
        place = PARTED.get(action.kind)
        links = [link for link in self._system.links if place in (None, link.place) and link.name not in self._outages]
        if not links:
            return False
        link = links[action.link % len(links)]
        self.fault_log.counts[action.kind] += 1
        self.fault_log.modes[action.mode, link.place] += 1
        self._open_outage(link.name, action.kind)
        self._system.network.set(link.name, action.mode, action.delay_s)
        if action.mode is Mode.RESET:
            self._say(f"reset {link.name}")
            self._close_outage(link.name)
        else:
            self._say(f"{action.mode} {link.name} for {action.down_s:.2f} s")
            self._plan(time.monotonic() + action.down_s, lambda: self._restore(link))
        return True

    def _swallow_all_but_one(self, action: Action) -> bool:
        links = [link for link in self._system.links if link.place is Place.PARTICIPANT]
        spared = links[action.link % len(links)]
        links = [link for link in links if link is not spared and link.name not in self._outages]
        if not links:
            return False
        self.fault_log.counts[action.kind] += 1
        self._say(f"all participants but that of {spared.name} swallow everything for {action.down_s:.2f} s")
        for link in links:
            self._open_outage(link.name, action.kind)
            self._system.network.set(link.name, Mode.SWALLOW)
            self._plan(time.monotonic() + action.down_s, lambda link=link: self._restore(link))  # type: ignore[misc]
        return True

    def _trouble_names(self, action: Action) -> bool:
        if NAME in self._outages:
            return False
        self.fault_log.counts[action.kind] += 1
        self._open_outage(NAME, action.kind)
        self._system.names_file.write_text(TROUBLES[action.kind])
        self._say(f"{action.kind} for {action.down_s:.2f} s")
        self._plan(time.monotonic() + action.down_s, self._find_names)
        return True

    def _trouble_clocks(self, action: Action) -> bool:
        replica = next(_ready_from(self._system.replicas, action.replica), None)
        if replica is None:
            return False
        self.fault_log.counts[action.kind] += 1
        if action.kind is Kind.SET_CLOCK:
            replica.clock.set_by(action.set_by_s)
            self._say(f"the clock of {replica.name}'s machine is set by {action.set_by_s:.1f} s")
            return True
        self._open_outage(replica.name, action.kind)
        replica.freeze()
        self._say(f"the machine of {replica.name} stands still for {action.down_s:.2f} s")
        since, life = time.monotonic(), replica.lives
        self._plan(since + action.down_s, lambda: self._resume(replica, life, since))
        return True

    def _trouble_postgres(self, action: Action) -> bool:
        target = "postgres" if action.kind is Kind.READ_ONLY else BACKEND
        if "postgres" in self._outages or target in self._outages or not self._system.postgres.running:
            return False
        if action.kind is Kind.READ_ONLY:
            self._reads_only = True
            self._system.postgres.only_reads(True)
            undo = self._let_write
        else:
            self._frozen_backend = self._system.freeze_backend(action.link)
            undo = self._thaw_backend
        self.fault_log.counts[action.kind] += 1
        self._open_outage(target, action.kind)
        self._say(f"{action.kind} for {action.down_s:.2f} s")
        self._plan(time.monotonic() + action.down_s, undo)
        return True

    def _let_write(self) -> None:
        if self._reads_only:
            self._reads_only = False
            self._system.postgres.only_reads(False)
            self._close_outage("postgres")
            self._say("PostgreSQL writes again")

    def _thaw_backend(self) -> None:
        """It may be gone: whoever waited for it may have given up, and PostgreSQL may have been crashed."""
        if self._frozen_backend is not None:
            with suppress(ProcessLookupError):
                os.kill(self._frozen_backend, signal.SIGCONT)
            self._frozen_backend = None
            self._close_outage(BACKEND)
            self._say("SIGCONT of the backend of PostgreSQL")

    def _resume(self, replica: Replica, life: int, since: float) -> None:
        if replica.frozen and replica.lives == life:  # otherwise killed meanwhile
            replica.clock.stood_still(time.monotonic() - since)
            self._thaw(replica)

    def _find_names(self) -> None:
        if NAME in self._outages:
            self._system.names_file.unlink()
            self._close_outage(NAME)
            self._say("names are found again")

    def _restore(self, link: LinkPorts) -> None:
        if link.name in self._outages:
            self._system.network.set(link.name, Mode.PASS)
            self._close_outage(link.name)
            self._say(f"{link.name} is as it was")

    def _fill(self, action: Action) -> bool:
        name = FULL[action.kind]
        if name in self._outages:
            return False
        disk = self._system.disks[name]
        self.fault_log.counts[action.kind] += 1
        self._open_outage(name, action.kind)
        self._full.add(name)
        disk.fill()
        self._say(f"the disk of {name} is full for {action.down_s:.2f} s")
        self._plan(time.monotonic() + action.down_s, lambda: self._free(disk))
        return True

    def _free(self, disk: Disk) -> None:
        disk.free()
        self._full.discard(disk.name)
        self._say(f"the disk of {disk.name} has room again")
        if disk.name != "postgres" or self._system.postgres.running:
            self._close_outage(disk.name)

    def _thaw(self, process: Process) -> None:
        if not process.frozen:
            return  # killed meanwhile
        process.thaw()
        self._say(f"SIGCONT {process.name}")

    def _start(self, process: Process) -> None:
        if process.alive:
            return
        process.start()
        self._say(f"start {process.name}")

    def _crash_postgres(self, action: Action) -> None:
        if "postgres" in self._outages:
            return
        self._open_outage("postgres", action.kind)
        self._is_away = True
        self._thaw_backend()
        self._system.crash_postgres()
        self._say(f"PostgreSQL immediate, back in {action.down_s:.2f} s")
        self._plan(time.monotonic() + action.down_s, self._start_postgres)

    def _start_postgres(self) -> None:
        self._is_away = False
        self._say("start PostgreSQL")
        self._postgres_start = self._system.start_postgres()

    def _notice_postgres(self) -> None:
        """Its start has come to an end; a failure ends the run. On a full disk it gives up by itself."""
        if self._postgres_start is None and not self._full and not self._is_away and not self._system.postgres.running:
            self.fault_log.restarts += 1
            self._say("PostgreSQL ended by itself, start it again")
            if "postgres" not in self._outages:
                self._open_outage("postgres", Kind.FULL_POSTGRES)
            self._start_postgres()
        if self._postgres_start is not None and self._postgres_start.done():
            self._postgres_start.result()
            self._postgres_start = None
            self._close_outage("postgres")
            self._say("PostgreSQL accepts connections")

    def _open_outage(self, target: str, kind: Kind) -> None:
        outage = Outage(target=target, kind=kind, since=time.monotonic())
        self._outages[target] = outage
        self.fault_log.outages.append(outage)

    def _close_outage(self, target: str) -> None:
        outage = self._outages.pop(target, None)
        if outage is not None:
            outage.until = time.monotonic()

    def _complain(self, text: str) -> None:
        self.fault_log.complaints.append(text)
        self._say(text)

    def _say(self, text: str) -> None:
        line = f"{time.monotonic() - self._started_at:7.2f} s  {text}"
        print(line, flush=True)
        with self._log.open("a") as log:
            log.write(line + "\n")


P = TypeVar("P", bound=Process)


def _ready_from(processes: list[P], first: int) -> Iterator[P]:
    """Those that are at work, beginning with the one that was drawn."""
    return (each for each in processes[first:] + processes[:first] if each.ready and each.wanted)
