"""The coordinator's Prometheus metrics. Only counts; makes no decisions."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from app.protocol.values import CallRecord, Outcome
from holdfast.wire import Answer, Operation


class Metrics:
    """The metrics of one coordinator, in their own registry."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.begun = Counter("holdfast_transactions_begun", "Transactions recorded", registry=self.registry)
        self.finished = Counter(
            "holdfast_transactions_finished", "Transactions finished", ["outcome"], registry=self.registry
        )
        for outcome in Outcome:  # from the start, so that the first mixed one is an increase
            self.finished.labels(outcome=outcome)
        self.claimed = Counter(
            "holdfast_transactions_claimed",
            "Transactions taken over from a process that left them in the middle of a call",
            registry=self.registry,
        )
        self.purged = Counter(
            "holdfast_transactions_purged", "Transactions deleted after their retention", registry=self.registry
        )
        self.purge_failures = Counter(
            "holdfast_purge_failures", "Batches that could not be exported or purged", registry=self.registry
        )
        self.running = Gauge(
            "holdfast_transactions_running", "Transactions in progress on this process", registry=self.registry
        )
        self.unfinished = Gauge(
            "holdfast_transactions_unfinished", "Unfinished transactions in the database", registry=self.registry
        )
        self.hung = Gauge("holdfast_transactions_hung", "Hung transactions in the database", registry=self.registry)
        self.unauthenticated = Counter(
            "holdfast_requests_unauthenticated", "Requests without a valid API key", registry=self.registry
        )
        self.forbidden = Counter(
            "holdfast_requests_forbidden", "Requests whose API key doesn't allow them", registry=self.registry
        )
        self.database_up = Gauge(
            "holdfast_database_up", "Whether the database answered this scrape", registry=self.registry
        )
        self.clock_ahead = Gauge(
            "holdfast_clock_ahead_seconds",
            "How far a clock is ahead of the database's, or behind if negative",
            ["clock"],
            registry=self.registry,
        )
        self._calls = Histogram(
            "holdfast_call_duration_seconds",
            "Calls to participants",
            ["participant", "operation", "answer"],
            registry=self.registry,
        )
        self._series: dict[tuple[str, Operation, Answer], Histogram] = {}
        """Series by label values: looking one up in the histogram costs more than counting."""

    def observe_call(self, participant: str | None, record: CallRecord) -> None:
        """Count one call. All inline endpoints share one label, to bound the number of series."""
        kind = (participant or "(endpoints)", record.operation, record.answer)
        series = self._series.get(kind)
        if series is None:
            series = self._series[kind] = self._calls.labels(*kind)
        series.observe(record.duration_ms / 1000)
