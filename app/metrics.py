"""What the coordinator counts, for Prometheus. Counting only: nothing here decides anything."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from app.protocol.values import CallRecord
from holdfast.wire import Answer, Operation


class Metrics:
    """The counters of one coordinator, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.begun = Counter("holdfast_transactions_begun", "Transactions recorded", registry=self.registry)
        self.finished = Counter(
            "holdfast_transactions_finished", "Transactions ended", ["outcome"], registry=self.registry
        )
        self.claimed = Counter(
            "holdfast_transactions_claimed", "Transactions that recovery took over", registry=self.registry
        )
        self.purged = Counter(
            "holdfast_transactions_purged", "Transactions deleted after their retention", registry=self.registry
        )
        self.purge_failures = Counter(
            "holdfast_purge_failures", "Batches that could not be exported or deleted", registry=self.registry
        )
        self.running = Gauge("holdfast_transactions_running", "Worked on by this process now", registry=self.registry)
        self.unfinished = Gauge(
            "holdfast_transactions_unfinished", "Not ended, in the database", registry=self.registry
        )
        self.hung = Gauge("holdfast_transactions_hung", "In need of attention, in the database", registry=self.registry)
        self._calls = Histogram(
            "holdfast_call_duration_seconds",
            "Calls to participants",
            ["participant", "operation", "answer"],
            registry=self.registry,
        )
        self._series: dict[tuple[str, Operation, Answer], Histogram] = {}
        """Looking one up by its labels costs more than counting."""

    def observe_call(self, participant: str | None, record: CallRecord) -> None:
        """Count one call; branches given by URLs share one label, because labels must be few."""
        kind = (participant or "(endpoints)", record.operation, record.answer)
        series = self._series.get(kind)
        if series is None:
            series = self._series[kind] = self._calls.labels(*kind)
        series.observe(record.duration_ms / 1000)
