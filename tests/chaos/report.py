"""Figures and timelines for people. Computes nothing that the verdict depends on."""

from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any, Final

from tests.chaos.call_log import Fault
from tests.chaos.nemesis import FaultLog, Kind, Outage
from tests.harness.checker import Case, StaleReads, Violation
from tests.harness.evidence import Evidence, Known

SHOWN_EACH: Final = 3
TIMELINES_MAX: Final = 20
KILLS: Final = (Kind.KILL_REPLICA, Kind.KILL_AGAIN, Kind.KILL_ALL_REPLICAS, Kind.KILL_BOTH, Kind.CRASH_IN_RECOVERY)


@dataclass(slots=True)
class Takeovers:
    """How long transactions of killed replicas waited for the next sign of life, in seconds."""

    kills: set[float] = field(default_factory=set)
    waits_s: list[float] = field(default_factory=list)
    calm_waits_s: list[float] = field(default_factory=list)
    """Those during which nothing else was done, and at least one replica was there all the time."""


def takeovers(evidence: Evidence, outages: Sequence[Outage], *, replicas: int) -> Takeovers:
    """From a SIGKILL to the next call, or the end, of each unfinished transaction that the killed replica had begun."""
    arrivals: dict[str, list[float]] = defaultdict(list)
    for request in evidence.requests:
        arrivals[request.transaction_id].append(request.arrived_at)
    found = Takeovers()
    for transaction_id, replica in _begun_at(evidence).items():
        known = evidence.known[transaction_id]
        kill = _kill_during(known, replica, outages)
        if kill is None:
            continue
        assert known.finished_at is not None
        times = arrivals[transaction_id]
        sign_at = min([known.finished_at, *times[bisect_right(times, kill.since) :]])
        found.kills.add(kill.since)
        found.waits_s.append(sign_at - kill.since)
        if _is_calm(kill, sign_at, outages, replicas):
            found.calm_waits_s.append(sign_at - kill.since)
    return found


def _begun_at(evidence: Evidence) -> dict[str, str]:
    """Transaction → replica to which the attempt went during which it was created."""
    attempts = defaultdict(list)
    for note in evidence.notes:
        if note.kind == "begin":
            attempts[note.key].append(note)
    return {
        known.transaction_id: f"replica-{note.replica}"
        for known in evidence.known.values()
        for note in attempts[known.reference]
        if note.sent_at <= known.created_at <= note.seen_at
    }


def _kill_during(known: Known, replica: str, outages: Sequence[Outage]) -> Outage | None:
    """The first kill of this replica while the transaction was under way."""
    if known.finished_at is None:
        return None
    lived = (known.created_at, known.finished_at)
    kills = (o for o in outages if o.target == replica and o.kind in KILLS and lived[0] < o.since < lived[1])
    return min(kills, key=lambda kill: kill.since, default=None)


def _is_calm(kill: Outage, until: float, outages: Sequence[Outage], replicas: int) -> bool:
    away = {kill.target}
    for other in outages:
        if other is kill or other.since > until or (other.until is not None and other.until < kill.since):
            continue
        if other.since >= kill.since or not other.target.startswith("replica-"):
            return False
        away.add(other.target)
    return len(away) < replicas


def summary(
    evidence: Evidence,
    fault_log: FaultLog,
    violations: Sequence[Violation],
    stale: StaleReads,
    *,
    replicas: int,
    claimed: int,
    rotated: int,
    seconds: float,
    settled_s: float,
) -> Iterator[str]:
    """The end report. `seconds` is how long there was load."""
    outcomes = Counter(known.outcome for known in evidence.known.values())
    keys = {note.key for note in evidence.notes if note.transaction_id and note.key}
    broken = sum(note.status in (0, 503) for note in evidence.notes)
    died = sum(request.status is None for request in evidence.requests)
    faults = Counter(request.fault for request in evidence.requests if request.fault != Fault.NONE)
    found = takeovers(evidence, fault_log.outages, replicas=replicas)
    ended = sum(count for outcome, count in outcomes.items() if outcome is not None)
    yield f"transactions         {len(evidence.known)}, of which {_counted(outcomes)}; {len(keys)} acknowledged"
    yield f"    finished         {ended / seconds:.1f} a second, over {seconds:.0f} s"
    yield f"client requests      {len(evidence.notes)}, of which {broken} got no answer or 503"
    yield f"participant calls    {len(evidence.requests)}, of which {died} died on the way"
    yield f"participants' faults {_counted(faults)}"
    yield f"kills                {fault_log.kills}: {_counted(fault_log.kills_by_target)}"
    yield f"    a minute         {fault_log.kills / seconds * 60:.1f}"
    yield f"came back            {fault_log.restarts} processes that had given up by themselves"
    yield "what was done"
    yield from (f"    {count:5}  {kind}" for kind, count in fault_log.counts.most_common())
    yield from (f"    {count:5}  {mode}: {place}" for (mode, place), count in sorted(fault_log.modes.items()))
    yield f"keys rotated         {rotated} times, while clients and participants showed them"
    yield f"claimed by recovery  {claimed}, at least (holdfast_transactions_claimed_total)"
    yield f"taken over           {len(found.waits_s)} transactions after {len(found.kills)} kills of their replica"
    yield f"    from the kill to the next call or the end: {_spread(found.waits_s)}"
    yield f"    and when nothing else was done meanwhile: {_spread(found.calm_waits_s)}"
    yield f"settled              {settled_s:.1f} s after everything worked again"
    yield f"histories read       {len(evidence.histories)}"
    yield f"stale reads          {stale.count}, worst {stale.worst_s:.2f} s behind (allowed, only counted)"
    yield f"violations           {len(violations) + len(fault_log.complaints)}"


def _counted(counts: Counter[Any]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.most_common())


def _spread(waits_s: Sequence[float]) -> str:
    if not waits_s:
        return "none"
    return f"median {median(waits_s):.2f} s, worst {max(waits_s):.2f} s ({len(waits_s)} transactions)"


def explain(violations: Sequence[Violation], complaints: Sequence[str]) -> Iterator[str]:
    """How many of each rule, and the first of them."""
    by_rule: dict[str, list[Violation]] = defaultdict(list)
    for violation in violations:
        by_rule[violation.rule].append(violation)
    for name, found in by_rule.items():
        yield f"{len(found):5}  {name}"
        yield from (f"       {each.transaction_id or ''} {each.what}" for each in found[:SHOWN_EACH])
    yield from complaints


def timelines(evidence: Evidence, violations: Sequence[Violation], started_at: float) -> Iterator[str]:
    """All that is known of the first transactions that went wrong, in order of time."""
    case = Case(evidence)
    ids = list(dict.fromkeys(violation.transaction_id for violation in violations if violation.transaction_id))
    for transaction_id in ids[:TIMELINES_MAX]:
        yield f"\n{transaction_id}: {evidence.known.get(transaction_id)}"
        yield from (f"  violates {v.rule}: {v.what}" for v in violations if v.transaction_id == transaction_id)
        yield from (f"  {at - started_at:9.3f} s  {what}" for at, what in sorted(_happened(case, transaction_id)))


def _happened(case: Case, transaction_id: str) -> Iterator[tuple[float, str]]:
    for request in case.requests[transaction_id]:
        call = f"{request.operation} {request.attempt} of {request.branch}"
        yield request.arrived_at, f"{request.participant} gets {call}"
        if request.answered_at is not None:
            yield request.answered_at, f"{request.participant} answers {call}: {request.status} ({request.fault})"
    for effect in case.effects[transaction_id]:
        yield effect.at, f"{effect.participant} does {effect.operation} of {effect.branch}"
    for note in case.notes[transaction_id]:
        answer = f"{note.status} {note.decision} {note.outcome}"
        yield note.seen_at, f"replica-{note.replica} answers {note.kind} of {note.sent_at:.3f}: {answer}"


def cpu(spent_s: Mapping[str, float], transactions: int) -> Iterator[str]:
    """Whose time of a core it was, and for each transaction; PostgreSQL's own is not looked at."""
    total_s = sum(spent_s.values())
    shares = ", ".join(f"{name} {each_s:.0f} s" for name, each_s in sorted(spent_s.items()))
    yield f"time of a core       {total_s:.0f} s ({shares})"
    yield f"    a transaction    {1000 * total_s / max(1, transactions):.1f} ms"
