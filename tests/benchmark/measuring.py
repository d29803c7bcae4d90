"""One round: start the contender, load it, read its CPU over the window, stop it, and check that all of it happened."""

from dataclasses import dataclass

from tests.benchmark.contenders import Contender, Running
from tests.benchmark.databases import CheckFailed
from tests.benchmark.load import Plan, Tally, run_load
from tests.benchmark.noop import Noop, dead, revive
from tests.benchmark.processes import cpu_s, rss_peak_mb

CALLS_PER_TRANSACTION = 4
"""Try and Confirm, at two participants."""
CALLS_OF_CANCELLED = 2
"""Try and Cancel at the participant that lives; the other one counts its own."""


@dataclass(frozen=True, kw_only=True)
class Shape:
    """How hard it is loaded, and for how long."""

    clients: int
    seconds: float
    warmup_s: float
    dead_share: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Round:
    """What one round came to. CPU is per transaction: of the coordinators, and of the database's server."""

    throughput_per_s: float
    p50_ms: float
    p99_ms: float
    cpu_ms: float | None
    database_cpu_ms: float | None
    rss_peak_mb: float | None
    confirmed: int
    cancelled: int


class _Meter:
    """CPU used between the two moments that the clients announce."""

    def __init__(self, contender: Contender, running: Running) -> None:
        self._contender = contender
        self._ids = [process.id for process in running.processes]
        self.coordinators_s = self.database_s = self.rss_peak_mb = 0.0

    def start(self) -> None:
        self.coordinators_s, self.database_s = -self._coordinators_s(), -self._database_s()

    def stop(self) -> None:
        self.coordinators_s += self._coordinators_s()
        self.database_s += self._database_s()
        self.rss_peak_mb = max((rss_peak_mb(each) for each in self._ids), default=0.0)

    def _coordinators_s(self) -> float:
        return cpu_s(self._ids)

    def _database_s(self) -> float:
        return self._contender.database.server_cpu_s() if self._contender.database else 0.0


def measure(contender: Contender, participant: Noop, shape: Shape) -> Round:
    """One round. Raises CheckFailed when what was answered, made and kept don't agree."""
    if shape.dead_share:
        with dead() as silent:
            return _measure(contender, participant, shape, silent)
    return _measure(contender, participant, shape, None)


def _measure(contender: Contender, participant: Noop, shape: Shape, silent: Noop | None) -> Round:
    calls_before = participant.count()
    with contender.start(participant, {"dead": f"{silent.url}/dead"} if silent else {}) as running:
        meter = _Meter(contender, running)

        def end() -> None:
            meter.stop()
            if silent:
                revive(silent)  # what waits for it now comes to its end, and is checked too

        plan = Plan(
            urls=running.urls,
            clients=shape.clients,
            warmup_s=shape.warmup_s,
            seconds=shape.seconds,
            participant_url=participant.url,
            driver=running.driver,
            dead_share=shape.dead_share,
        )
        tally = run_load(plan, on_start=meter.start, on_end=end)
        try:
            check_answers(tally)
            check_calls(tally, participant.count() - calls_before)
            check_kept(contender, tally, has_dead=silent is not None)
        except CheckFailed as failed:
            logs = "\n".join(each.log for each in running.processes)
            raise CheckFailed(f"{failed}\n{logs}") from failed
    has_cpu = bool(running.processes)
    return Round(
        throughput_per_s=tally.in_window / tally.window_s,
        p50_ms=tally.p50_ms,
        p99_ms=tally.p99_ms,
        cpu_ms=1000 * meter.coordinators_s / tally.in_window if has_cpu else None,
        database_cpu_ms=1000 * meter.database_s / tally.in_window if contender.database else None,
        rss_peak_mb=meter.rss_peak_mb if has_cpu else None,
        confirmed=tally.confirmed,
        cancelled=tally.cancelled,
    )


def check_answers(tally: Tally) -> None:
    """Raise CheckFailed when a client got anything but what it asked for, or nobody got anything."""
    if tally.errors:
        raise CheckFailed(f"{tally.errors} errors; the first: {tally.first_error}")
    if not tally.in_window:
        raise CheckFailed("no transaction ended within the window")


def check_calls(tally: Tally, calls: int) -> None:
    """Raise CheckFailed unless the participant has seen exactly the calls of these transactions."""
    expected = CALLS_PER_TRANSACTION * tally.confirmed + CALLS_OF_CANCELLED * tally.cancelled
    if calls != expected:
        raise CheckFailed(f"the participant must have seen {expected} calls, but has seen {calls}")


def check_kept(contender: Contender, tally: Tally, *, has_dead: bool = False) -> None:
    """Raise CheckFailed unless the database has exactly these transactions and those of the rounds before."""
    database = contender.database
    if database is None:
        return
    database.expect(calls_each=CALLS_PER_TRANSACTION, confirmed=tally.confirmed)
    if has_dead:  # how often a dead participant was called depends on the moment
        database.expect(calls_each=0, cancelled=tally.cancelled)
        database.calls_expected = None
    database.check()
