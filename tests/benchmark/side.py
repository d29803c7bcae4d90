"""One side of a comparison: a contender at work, whose turns are measured and checked one by one, and summed up."""

import statistics
from dataclasses import dataclass, field

from tests.benchmark.contenders import Contender, Running
from tests.benchmark.databases import CheckFailed
from tests.benchmark.health_probe import HealthProbe
from tests.benchmark.load import Tally
from tests.benchmark.measuring import check_calls, check_kept
from tests.benchmark.noop import Noop
from tests.benchmark.paced_clients import PacedClients
from tests.benchmark.processes import cpu_s, rss_peak_mb


@dataclass
class _Sums:
    transactions: int = 0
    elapsed_s: float = 0.0
    coordinators_s: float = 0.0
    database_s: float = 0.0
    p50s_ms: list[float] = field(default_factory=list)
    healthz_s: list[float] = field(default_factory=list)


class Side:
    """Takes its turns while nobody else calls the participant."""

    def __init__(
        self, name: str, contender: Contender, running: Running, clients: PacedClients, participant: Noop
    ) -> None:
        self._name = name
        self._contender = contender
        self._running = running
        self._clients = clients
        self._participant = participant
        self._ids = [process.id for process in running.processes]
        self._sums = _Sums()

    def warm_up(self, transactions: int) -> None:
        """A turn that does not count: a new process imports, compiles and connects."""
        self.turn(transactions)
        self._sums = _Sums()

    def turn(self, transactions: int) -> None:
        """So many transactions. Raises CheckFailed when what was answered, made and kept don't agree."""
        try:
            self._turn(transactions)
        except CheckFailed as failed:
            logs = "\n".join(each.log for each in self._running.processes)
            raise CheckFailed(f"{self._name}: {failed}\n{logs}") from failed

    def figures(self) -> dict[str, float]:
        """What its turns came to; the database's CPU is not there when it is a part of the coordinator's."""
        sums = self._sums
        healthz_s = sorted(sums.healthz_s)
        figures = {
            "cpu_ms": 1000 * sums.coordinators_s / sums.transactions,
            "database_cpu_ms": 1000 * sums.database_s / sums.transactions,
            "throughput_per_s": sums.transactions / sums.elapsed_s,
            "p50_ms": statistics.median(sums.p50s_ms),
            "healthz_p50_ms": 1000 * statistics.median(healthz_s),
            "healthz_p90_ms": 1000 * healthz_s[int(0.9 * len(healthz_s))],
            "rss_peak_mb": sum(rss_peak_mb(each) for each in self._ids),
        }
        return {name: value for name, value in figures.items() if value}

    def _turn(self, transactions: int) -> None:
        calls_before = self._participant.count()
        coordinators_s, database_s = cpu_s(self._ids), self._database_s()
        with HealthProbe(self._running.urls[0]) as probe:
            batch = self._clients.run(transactions)
        sums = self._sums
        sums.coordinators_s += cpu_s(self._ids) - coordinators_s
        sums.database_s += self._database_s() - database_s
        sums.transactions += batch.confirmed
        sums.elapsed_s += batch.elapsed_s
        sums.p50s_ms.append(batch.p50_ms)
        sums.healthz_s += probe.latencies_s
        tally = Tally(confirmed=batch.confirmed)
        check_calls(tally, self._participant.count() - calls_before)
        check_kept(self._contender, tally)

    def _database_s(self) -> float:
        return self._contender.database.server_cpu_s() if self._contender.database else 0.0
