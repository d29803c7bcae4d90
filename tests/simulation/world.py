"""One seed from beginning to end: a safety phase under faults, then a liveness phase without.

A seed is run with `run_seed`; nothing outside of it is drawn from, and nothing of it is left behind.
"""

import gc
import hashlib
import json
import logging
import random
import types
import warnings
from collections import Counter
from collections.abc import Callable, Set
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Final

from app.calling import caller
from app.engine import commands, coordinator
from app.maintenance import clock_sync, retention
from app.protocol.values import FINAL, HungReason
from app.settings import Settings
from holdfast.fence import execution
from holdfast.participant import reaper
from tests.harness import ledger
from tests.harness.checker import Violation
from tests.harness.evidence import Request
from tests.harness.notes import Note
from tests.simulation import participant
from tests.simulation.clients import Clients
from tests.simulation.databases import empty_coordinator, empty_participant
from tests.simulation.faults import Branch, Fault, Plan
from tests.simulation.nemesis import STEPS_S, Nemesis
from tests.simulation.network import Network
from tests.simulation.oracle import Oracle
from tests.simulation.participant import GATEWAY, Gateway, HandlerFailed, SimulatedParticipant
from tests.simulation.replica import Replica, answer
from tests.simulation.scheduler import EPOCH, Process, Runaway, Scheduler, pass_time

TRANSACTIONS: Final = 20
BEGIN_WITHIN_S: Final = 3.0
SAFETY_MAX_S: Final = 8.0
LIVENESS_MAX_S: Final = 180.0
"""A participant that asks half of its questions in vain, because a replica stays away, pauses ever longer."""
LOOK_S: Final = 0.25
STRANGERS_S: Final = 4.0
"""Longer than a Try can take to leave its hold once faults are off; nobody waits for those of strangers."""
SILENCE_S: Final = 0.3
"""After so long a command's owner counts as dead: shorter than a lease."""
SETTLED_S: Final = 2.0
"""Longer than a call that has left can take, and the save of its answer, once faults are off."""
DAY_S: Final = 86_400.0
UNIX_EPOCH_DAY: Final = 2_440_587.5
"""In SQLite's julianday()."""
ABSENT_CHANCE: Final = 0.2
"""In so many seeds some stay away for the first part of the liveness phase."""
DRIFT: Final = 0.0005
"""So much too fast or slow are replicas' clocks at the most, several times what quartz is."""
CLOCKS_CHECKED_S: Final = 0.5
SWEEPS_S: Final = 4.0
"""Pauses between two looks at the database's clock, and two sweeps of the retention."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What came of a seed."""

    seed: int
    violations: list[Violation]
    fired: Counter[str]
    trace: str
    transactions: int
    virtual_s: float
    timeline: list[str] = field(default_factory=list)


@cache
def settings() -> Settings:
    """Timings are compressed: a phase of a few seconds has many leases, back-offs and deadlines in it."""
    return Settings(
        allowed_endpoints="http://*:*",
        call_timeout_s=0.5,
        lease_s=0.8,
        retry_base_s=0.05,
        retry_cap_s=1.0,
        hold_margin_s=2.0,
        hung_attempts=4,
        hung_after_s=1.5,
        timeout_default_s=2.0,
    )


class World:
    """Everything that there is in one seed."""

    def __init__(self, seed: int, *, transactions: int, without: Set[Fault], keeps_timeline: bool) -> None:
        self.seed = seed
        self.draw = random.Random(seed)
        self.plan = Plan(seed, self.draw, without)
        self.transactions = transactions
        self.loop = Scheduler(self.draw)
        self.oracle = Oracle(self)
        self.notes: list[Note] = []
        self.requests: list[Request] = []
        self.timeline: list[str] = []
        self.snapshots: list[bytes] = []
        self.owners: dict[str, str] = {}
        self.strangers: set[tuple[str, str]] = set()
        """Transaction and branch of what a participant was told to try, and no coordinator has ever recorded."""
        self.absent: set[str] = set()
        """Who stays away although faults are off."""
        self._keeps_timeline = keeps_timeline
        self._trace = hashlib.blake2b(digest_size=16)
        self._short: dict[str, str] = {}
        self.network = Network(self.loop, self.plan, self.tell)
        self.gateway = Gateway(lambda: self.loop.now)
        self.clients_process = Process(self.loop, "clients")
        self.database = empty_coordinator()
        self.database.create_function("julianday", 1, lambda _: self.database_time() / DAY_S + UNIX_EPOCH_DAY)
        self.lag_s = 0.0
        """How long ago the statements ran that are being committed."""
        self.healed_at = 0.0
        self.replicas = [Replica(self, f"replica-{n}", settings()) for n in range(self.draw.choice([2, 2, 3]))]
        self.participant_names = ["orders", "stock", GATEWAY][: self.draw.choice([2, 3, 3])]
        self.databases = {name: empty_participant(name) for name in self.participant_names}
        self.participants = [self._participant(name) for name in self.participant_names]
        self.clients = Clients(self)
        self.notifies = not self.plan.hits_once(Fault.NO_NOTIFICATIONS)
        """Replicas notify each other; some databases can't."""
        self._register()

    def _participant(self, name: str) -> SimulatedParticipant:
        ttl_s = self.draw.choice([None, None, 0.4, 1.5])
        limit_s = self.draw.choice([None, None, None, 3.0])
        reacquires = limit_s is not None and self.draw.random() < 0.5
        return SimulatedParticipant(self, name, hold_ttl_max_s=ttl_s, hold_max_s=limit_s, reacquires=reacquires)

    def _register(self) -> None:
        self.database.executemany(
            "INSERT INTO participants (name, base_url, call_timeout_s, concurrency_max) VALUES (?, ?, NULL, 64)",
            [(name, f"http://{name}/tcc") for name in self.participant_names],
        )

    def tell(self, what: str, *rest: str) -> None:
        """An event of the trace, and a line of the timeline."""
        line = f"{self.loop.now:9.4f}  {what:<12} {' > '.join(filter(None, rest[:2])):<28} {' '.join(rest[2:])}"
        self._trace.update(line.encode())
        if self._keeps_timeline:
            self.timeline.append(line)

    def short(self, transaction_id: str) -> str:
        """T1, T2, … in the order in which they are seen."""
        return self._short.setdefault(transaction_id, f"T{len(self._short) + 1}")

    def take(self, life: str, transaction_id: str) -> str | None:
        """From this commit on a transaction is this life's, known or not to whoever had it before; who that was."""
        before = self.owners.get(transaction_id)
        self.owners[transaction_id] = life
        self.oracle.took(life, transaction_id)
        return before

    def database_time(self) -> float:
        """What the database's clock says, which is right."""
        return EPOCH + self.loop.now - self.lag_s

    def committed(self) -> None:
        """The coordinator's database has committed something; ablations hook into this, too."""
        self.oracle.check_commands()

    def replica_died(self) -> None:
        """A replica has crashed; likewise."""

    def set_clocks(self) -> None:
        for replica in self.replicas:
            if self.plan.hits_once(Fault.REPLICA_SKEW):
                replica.offset_s = self.draw.choice(STEPS_S) * self.draw.uniform(-1.0, 1.0)
                replica.rate = 1 + self.draw.uniform(-1, 1) * DRIFT
        for each in self.participants:
            if self.plan.hits_once(Fault.PARTICIPANT_DRIFT):
                each.offset_s = self.draw.uniform(-1e6, 1e6)
                each.rate = 1 + self.draw.uniform(-1, 1) * 0.1

    async def run(self) -> None:
        self.set_clocks()
        for each in (*self.replicas, *self.participants):
            each.boot()
        nemesis = Nemesis(self)
        times = sorted(self.draw.uniform(0, BEGIN_WITHIN_S) for _ in range(self.transactions))
        for number, at in enumerate(times):
            self.clients_process.spawn(self.clients.transfer(number, at))
        await pass_time(BEGIN_WITHIN_S)
        while self.clients.left and self.loop.now < SAFETY_MAX_S:
            await pass_time(LOOK_S)
        self.tell("faults off", "", "", "")
        self.plan.stop()
        nemesis.heal()
        if self.draw.random() < ABSENT_CHANCE:
            await self._come_to_rest_without(self._drawn_to_be_absent())
        await self._until(lambda: self._busy() or (self.clients.left and "clients"))
        if self.strangers:
            await pass_time(STRANGERS_S)
            await self._until(self._busy)
        await self._resolve_some()
        await self._check_end()

    def _drawn_to_be_absent(self) -> list[Any]:
        """One participant, or all replicas but one."""
        if self.draw.random() < 0.5:
            return [self.draw.choice(self.participants)]
        core = self.draw.choice(self.replicas)
        return [replica for replica in self.replicas if replica is not core]

    async def _come_to_rest_without(self, absent: list[Any]) -> None:
        """A healthy core ends what needs nobody else, and lists the rest as hung, with the reason."""
        self.absent = {each.name for each in absent}
        for each in absent:
            self.tell("stays away", each.name, "", "")
            each.life.kill()
        self.plan.count(Branch.CORE)
        await self._until(lambda: self._busy(without=self.absent))
        given_up = self._given_up()
        for item in await self._hung():
            for branch in item["branches"] if item["id"] not in given_up else ():
                if branch["hung_reason"] in (HungReason.CONFIRM_UNANSWERED, HungReason.CANCEL_UNANSWERED):
                    self.plan.count(Branch.HUNG_FOR_THE_ABSENT)
                    if _place_of(branch) not in self.absent:
                        self.oracle.violated("hung_for_a_reason", item["id"], f"{branch['name']} could be reached")
        self.absent = set()

    async def _until(self, busy: Callable[[], Any]) -> None:
        """Wait until nothing is left to do, for a bounded time."""
        until = self.loop.now + LIVENESS_MAX_S
        while left := busy():
            if self.loop.now > until:
                self.oracle.violated("comes_to_rest", None, f"within {LIVENESS_MAX_S} s: {left}")
                return
            await pass_time(LOOK_S)

    async def _hung(self) -> Any:
        """What a replica that serves lists as hung."""
        _, hung = await answer(self, (await self._serving()).parts, ("hung",))
        return hung["items"]

    async def _serving(self) -> Any:
        """A replica that serves: the last fault may have killed them all a moment ago, and each starts again."""
        until = self.loop.now + LIVENESS_MAX_S
        while not (serving := [replica for replica in self.replicas if replica.serves]):
            if self.loop.now > until:
                raise Runaway(f"no replica serves within {LIVENESS_MAX_S} s")
            await pass_time(LOOK_S)
        return serving[0]

    async def _resolve_some(self) -> None:
        """An operator settles some of what hangs because a hold had been given up; the rest stays listed."""
        for item in await self._hung():
            refused = [branch["name"] for branch in item["branches"] if branch["hung_reason"] == "confirm_refused"]
            if self.draw.random() < 0.5:
                continue
            for branch in refused:
                self.tell("resolves", "operator", "", f"{self.short(item['id'])} {branch}")
                request = ("resolve", item["id"], branch, "cancelled", "the hold had been given up")
                status, _ = await answer(self, (await self._serving()).parts, request)
                if status != 200:
                    self.oracle.violated("a_person_can_resolve", item["id"], f"{branch}: {status}")
            self.plan.count(Branch.RESOLVED)

    def _given_up(self) -> set[str]:
        """Transactions of which a hold was given up at its hard limit: they may hang for that, and nobody waits."""
        expired = "SELECT transaction_id, branch FROM holdfast_branches WHERE state = 'expired'"
        rows = [row for connection in self.databases.values() for row in connection.execute(expired)]
        return {id_ for id_, branch in rows if (id_, branch) not in self.strangers}

    def _busy(self, without: Set[str] = frozenset()) -> str:
        """What is not finished, but for what waits for people or for the absent, and is listed as hung for it."""
        rows = self.database.execute(
            "SELECT id, decision, hung_since, progress FROM transactions WHERE wake_at IS NOT NULL"
        )
        given_up, left = self._given_up(), []
        for id_, decision, hung_since, progress in rows.fetchall():
            waits_for_people = decision == "confirm" and id_ in given_up  # a Cancel of what was given up succeeds
            waits_for = self._unfinished_places(id_, json.loads(progress)) if without else {""}
            if not (hung_since and (waits_for_people or waits_for <= without)):
                left.append(self.short(id_))
        for name, connection in self.databases.items():
            if name in without:
                continue
            waiting = connection.execute(
                "SELECT transaction_id, branch, state FROM holdfast_branches WHERE check_at IS NOT NULL "
                "OR state NOT IN ('confirmed', 'cancelled', 'expired')"
            ).fetchall()
            left += [f"{name}:{self.short(id_)}:{branch}:{state}" for id_, branch, state in waiting]
        return ", ".join(left)

    def _unfinished_places(self, transaction_id: str, progress: Any) -> set[str]:
        """Which participants a transaction still waits for, from its rows."""
        branches = "SELECT participant, definition FROM branches WHERE transaction_id = ? ORDER BY position"
        rows = self.database.execute(branches, (transaction_id,)).fetchall()
        ended = [branch["phase"] in FINAL for branch in progress["branches"]]
        ended += [False] * (len(rows) - len(ended))
        return {
            participant or _host(json.loads(definition)["endpoints"][0])
            for (participant, definition), is_ended in zip(rows, ended, strict=True)
            if not is_ended
        }

    async def _let_nothing_more_leave(self) -> None:
        """What hangs is still tried, and could succeed between two looks: no call reaches a participant any more."""
        if await self._hung():
            self.network.severed |= {(a.name, b.name) for a in self.replicas for b in self.participants}
            await pass_time(SETTLED_S)

    async def _check_end(self) -> None:
        await self._let_nothing_more_leave()
        self.oracle.check_clocks()
        parts = (await self._serving()).parts
        _, listed = await answer(self, parts, ("list",))
        _, hung = await answer(self, parts, ("hung",))
        calls = {}
        for item in listed["items"]:
            _, page = await answer(self, parts, ("calls", item["id"]))
            calls[item["id"]] = page["items"]
        self.oracle.check_end(listed["items"], {item["id"] for item in hung["items"]}, calls)
        self._count(listed["items"])

    def _count(self, items: list[Any]) -> None:
        by_code = {
            "hold_expired": Branch.HOLD_EXPIRED,
            "timed_out": Branch.TIMED_OUT,
            "refused": Branch.REFUSED,
            "requested": Branch.REQUESTED,
        }
        for item in items:
            if item["outcome"] == "confirmed":
                self.plan.count(Branch.CONFIRMED)
            elif item["reason"] and item["reason"]["code"] in by_code:
                self.plan.count(by_code[item["reason"]["code"]])
        for connection in self.databases.values():
            (tombstones,) = connection.execute(
                "SELECT count(*) FROM holdfast_branches WHERE state = 'cancelled' AND payload IS NULL"
            ).fetchone()
            if tombstones:
                self.plan.fired[Branch.TOMBSTONE] += tombstones

    @property
    def trace(self) -> str:
        return self._trace.hexdigest()


def run_seed(
    seed: int,
    *,
    transactions: int = TRANSACTIONS,
    without: Set[Fault] = frozenset(),
    keeps_timeline: bool = False,
) -> Result:
    """Run one seed; the same seed gives the same trace, wherever and whenever."""
    prepare()
    world = World(seed, transactions=transactions, without=without, keeps_timeline=keeps_timeline)
    participant.here = world
    _ids.draw = world.draw
    _errors.world = world
    ledger.time = types.SimpleNamespace(monotonic=lambda: world.loop.now)  # type: ignore[assignment, attr-defined]
    try:
        world.loop.run_to_end(world.run())
    except Runaway as error:
        world.oracle.violated("comes_to_rest", None, str(error))
    for failure in world.loop.failures:
        world.oracle.violated("no_defects", None, failure)
    result = Result(
        seed=seed,
        violations=world.oracle.violations,
        fired=world.plan.fired,
        trace=world.trace,
        transactions=len(world.clients.known),
        virtual_s=world.loop.now,
        timeline=world.timeline,
    )
    world.loop.bury()
    return result


def _place_of(branch: Any) -> str:
    """Which participant a branch is at, from the API's answer."""
    return branch["participant"] or _host(branch["endpoints"]["try"])


def _host(url: str) -> str:
    return url.split("/")[2]


# --- what is replaced in the process -----------------------------------------------------------------------------


class _Ids:
    """Stands in for os and random where identities and pauses are drawn."""

    draw: random.Random = random.Random()

    def urandom(self, size: int) -> bytes:
        return self.draw.randbytes(size)

    def uniform(self, low: float, high: float) -> float:
        return self.draw.uniform(low, high)


class _Errors(logging.Handler):
    """What the code under test logs as an error is one, unless a handler was made to fail."""

    world: Any = None

    def emit(self, record: logging.LogRecord) -> None:
        raised = record.exc_info[1] if record.exc_info else getattr(record, "_error", None)
        if self.world is None or self.world.loop._closed:
            return
        if record.name == "holdfast" and isinstance(raised, HandlerFailed):
            return
        if record.name == "holdfast" and "simulated" in str(raised):
            return
        if record.name == "app.maintenance.retention" and "simulated" in record.getMessage():
            return
        self.world.oracle.violated("no_defects", None, f"{record.getMessage()}: {raised!r}")


_ids = _Ids()
_errors = _Errors()


@cache
def prepare() -> None:
    """Replace, once, what would bring chance or real time in; and compress the timings that are constants."""
    for name in ("app", "holdfast"):
        logger = logging.getLogger(name)
        logger.setLevel(logging.ERROR)
        logger.propagate = False
        logger.addHandler(_errors)
    coordinator.os = _ids  # type: ignore[assignment, attr-defined]
    commands.os = _ids  # type: ignore[assignment, attr-defined]
    commands.random = _ids  # type: ignore[assignment, attr-defined]
    commands.SILENCE_S = SILENCE_S  # type: ignore[misc]
    caller.os = _ids  # type: ignore[assignment, attr-defined]
    clock_sync.PAUSE_S = CLOCKS_CHECKED_S  # type: ignore[misc]
    retention.SWEEP_PAUSE_S = retention.RETRY_PAUSE_S = SWEEPS_S  # type: ignore[misc]
    execution.BACKOFF_CAP_S = 2.0  # type: ignore[misc]
    reaper.CLAIM_S = 2.0  # type: ignore[misc]
    warnings.filterwarnings("ignore", "coroutine .* was never awaited")  # whose process died before it began
    gc.disable()
