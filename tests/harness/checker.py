"""What must hold after chaos, one rule a function: evidence in, violations out.

Pure: no files, no network, and nothing of the coordinator's code or tables. tests/harness/test_checker.py plants a
violation of every rule.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Final

from tests.harness.evidence import Effect, Evidence, Known, Request
from tests.harness.ledger import CHANGES
from tests.harness.notes import Note

ENDS: Final = {"confirm": "confirmed", "cancel": "cancelled"}
NO_ANSWER: Final = (0, 500, 502, 503, 504)
"""Statuses by which a client learns nothing."""
GOOD_ANSWERS: Final[Mapping[str, Set[tuple[int, str | None]]]] = {
    "begin": {(201, None), (202, None), (409, "transaction-cancelled")},
    "get": {(200, None)},
    "decision": {(200, None)},
    "inquiry": {(200, None)},
    "cancel": {(200, None), (409, "already-decided")},
}
"""What a transaction that was acknowledged may be answered with: status, and slug of the problem."""


@dataclass(frozen=True, slots=True)
class Violation:
    """What is wrong, and with which transaction."""

    rule: str
    transaction_id: str | None
    what: str


class Case:
    """The evidence, sorted by transaction."""

    def __init__(self, evidence: Evidence) -> None:
        self.evidence = evidence
        self.requests: dict[str, list[Request]] = defaultdict(list)
        self.effects: dict[str, list[Effect]] = defaultdict(list)
        self.notes: dict[str, list[Note]] = defaultdict(list)
        for request in evidence.requests:
            self.requests[request.transaction_id].append(request)
        for effect in evidence.effects:
            self.effects[effect.transaction_id].append(effect)
        for note in evidence.notes:
            if note.transaction_id is not None:
                self.notes[note.transaction_id].append(note)


Found = Iterator[tuple[str | None, str]]
Rule = Callable[[Case], Found]
RULES: Final[dict[str, Rule]] = {}


def rule(function: Rule) -> Rule:
    """Register a rule: case → (transaction, what is wrong)."""
    RULES[function.__name__] = function
    return function


def check(evidence: Evidence) -> list[Violation]:
    """Everything that is wrong."""
    case = Case(evidence)
    return [Violation(name, *found) for name, each in RULES.items() for found in each(case)]


# --- what clients were told --------------------------------------------------------------------------------------


@rule
def nothing_acknowledged_is_missing(case: Case) -> Found:
    for transaction_id, notes in case.notes.items():
        if transaction_id not in case.evidence.known:
            yield transaction_id, f"{notes[0].kind} showed it to a client, and the coordinator has forgotten it"


@rule
def acknowledged_stays(case: Case) -> Found:
    """What any client was told at any time is what is so at the end."""
    for transaction_id, notes in case.notes.items():
        known = case.evidence.known.get(transaction_id)
        for note in notes if known else ():
            assert known is not None
            if note.decided and note.decision != known.decision:
                yield transaction_id, f"{note.kind} said {note.decision}, the end is {known.decision}"
            if note.outcome is not None and note.outcome != known.outcome:
                yield transaction_id, f"{note.kind} said {note.outcome}, the end is {known.outcome}"


@rule
def decision_never_changes(case: Case) -> Found:
    """No two decided answers differ, and what is read from the database is never taken back to undecided."""
    for transaction_id, notes in case.notes.items():
        decided = [note for note in notes if note.decided]
        if len({note.decision for note in decided}) > 1:
            yield transaction_id, "clients were told both confirm and cancel"
        if not decided:
            continue
        first_seen_at = min(note.seen_at for note in decided)
        for note in notes:
            is_durable = note.kind in ("decision", "inquiry") and note.decision == "undecided"
            if is_durable and note.sent_at > first_seen_at:
                yield transaction_id, f"{note.kind} said undecided after somebody was told {decided[0].decision}"


@rule
def one_key_one_transaction(case: Case) -> Found:
    by_key: dict[str, set[str]] = defaultdict(set)
    for note in case.evidence.notes:
        if note.key is not None and note.transaction_id is not None:
            by_key[note.key].add(note.transaction_id)
    for known in case.evidence.known.values():
        if known.reference is not None:  # clients use the key as the reference
            by_key[known.reference].add(known.transaction_id)
    for key, ids in by_key.items():
        if len(ids) > 1:
            yield min(ids), f"key {key} began {len(ids)} transactions: {sorted(ids)}"


@rule
def answers_make_sense(case: Case) -> Found:
    for note in case.evidence.notes:
        if note.status in NO_ANSWER or (note.status, note.problem) in GOOD_ANSWERS[note.kind]:
            continue
        yield note.transaction_id, f"{note.kind} (key {note.key}) was answered {note.status} {note.problem}"


# --- what the coordinator says at the end ------------------------------------------------------------------------


@rule
def everything_finished(case: Case) -> Found:
    for known in case.evidence.known.values():
        if known.hung:
            yield known.transaction_id, "hangs though nothing is wrong any more"
        elif known.outcome is None or known.outcome != ENDS.get(known.decision):
            yield known.transaction_id, f"is {known.phase}, decision {known.decision}, outcome {known.outcome}"


@rule
def participants_know_nothing_unknown(case: Case) -> Found:
    strangers = {*case.requests, *case.effects, *(hold.transaction_id for hold in case.evidence.holds)}
    for transaction_id in sorted(strangers - case.evidence.known.keys()):
        yield transaction_id, "participants have been called for it, and the coordinator doesn't know it"


@rule
def history_explains_the_end(case: Case) -> Found:
    """Each branch's end has a call that succeeded, and each call that succeeded has arrived and succeeded there."""
    for transaction_id, calls in case.evidence.histories.items():
        known = case.evidence.known[transaction_id]
        succeeded = {(call.branch, call.operation) for call in calls if call.answer == "succeeded"}
        for branch, operation in _needed(known, case.requests[transaction_id]) - succeeded:
            yield transaction_id, f"no call in its history says why {branch} is done: {operation} never succeeded"
        seen = {(request.branch, request.operation) for request in case.requests[transaction_id] if request.succeeded}
        for branch, operation in succeeded - seen:
            yield transaction_id, f"its history has a {operation} of {branch} that the participant never did"


def _needed(known: Known, requests: Sequence[Request]) -> set[tuple[str, str]]:
    if known.outcome == "confirmed":
        return {(branch, operation) for branch in known.branches for operation in ("try", "confirm")}
    return {(request.branch, "cancel") for request in requests if request.operation == "try"}


# --- what arrived at participants --------------------------------------------------------------------------------


@rule
def never_both_decisions(case: Case) -> Found:
    for transaction_id, requests in case.requests.items():
        first: dict[str, Request] = {}
        for request in requests:
            first.setdefault(request.operation, request)
        if "confirm" in first and "cancel" in first:
            where = ", ".join(f"{name} at {first[name].participant}" for name in ("confirm", "cancel"))
            yield transaction_id, f"got both: {where}"


@rule
def calls_follow_the_decision(case: Case) -> Found:
    for transaction_id, requests in case.requests.items():
        known = case.evidence.known.get(transaction_id)
        asked = {request.operation for request in requests} - {"try"}
        for operation in asked if known else ():
            assert known is not None
            if operation != known.decision:
                yield transaction_id, f"a participant was asked to {operation}, the decision is {known.decision}"


@rule
def nobody_refuses_what_was_decided(case: Case) -> Found:
    refused = Counter(
        (request.transaction_id, f"{request.participant} answered {request.status} to {request.operation}")
        for request in case.evidence.requests
        if request.operation != "try" and request.status is not None and 400 <= request.status < 500
    )
    for (transaction_id, what), count in refused.items():
        yield transaction_id, f"{what}, {count} times"


@rule
def confirm_only_when_all_hold(case: Case) -> Found:
    for transaction_id, requests in case.requests.items():
        known = case.evidence.known.get(transaction_id)
        confirms = [request.arrived_at for request in requests if request.operation == "confirm"]
        if not confirms or known is None:
            continue
        held = {
            effect.branch
            for effect in case.effects[transaction_id]
            if effect.operation == "try" and effect.at < min(confirms)
        }
        for branch in sorted(known.branches.keys() - held):
            yield transaction_id, f"was confirmed before {branch} held"


# --- what participants did ---------------------------------------------------------------------------------------


@rule
def each_effect_once(case: Case) -> Found:
    for transaction_id, effects in case.effects.items():
        counts = Counter((effect.branch, effect.operation) for effect in effects)
        for (branch, operation), count in counts.items():
            if count > 1:
                yield transaction_id, f"{operation} of {branch} took effect {count} times"


@rule
def participants_agree(case: Case) -> Found:
    """All confirmed, or all cancelled: said by their effects alone."""
    for transaction_id, effects in case.effects.items():
        done = {effect.operation for effect in effects}
        if {"confirm", "cancel"} <= done:
            yield transaction_id, "one participant confirmed, another cancelled"


@rule
def effects_are_the_outcome(case: Case) -> Found:
    for transaction_id, known in case.evidence.known.items():
        done: dict[str, set[str]] = {branch: set() for branch in known.branches}
        for effect in case.effects.get(transaction_id, ()):
            done.setdefault(effect.branch, set()).add(effect.operation)
        for branch, operations in done.items():
            if known.outcome == "confirmed" and operations != {"try", "confirm"}:
                yield transaction_id, f"is confirmed, but {branch} did {sorted(operations)}"
            if known.outcome == "cancelled" and operations not in (set(), {"try", "cancel"}):
                yield transaction_id, f"is cancelled, but {branch} did {sorted(operations)}"


@rule
def no_try_after_its_cancel(case: Case) -> Found:
    cancelled: dict[tuple[str, str], float] = {}
    for request in case.evidence.requests:
        if request.operation == "cancel" and request.succeeded and request.answered_at is not None:
            key = (request.transaction_id, request.branch)
            cancelled[key] = min(request.answered_at, cancelled.get(key, request.answered_at))
    for effect in case.evidence.effects:
        if effect.operation == "try" and effect.at > cancelled.get(
            (effect.transaction_id, effect.branch), float("inf")
        ):
            yield effect.transaction_id, f"{effect.branch} was held after its Cancel had been answered"


@rule
def no_hold_left(case: Case) -> Found:
    for hold in case.evidence.holds:
        yield hold.transaction_id, f"{hold.branch} is still {hold.state} at {hold.participant}"
    for account in case.evidence.accounts:
        if account.held or account.incoming:
            where = f"{account.participant}, account {account.account}"
            yield None, f"{where}: {account.held} held and {account.incoming} incoming are left"


@rule
def money_is_conserved(case: Case) -> Found:
    evidence = case.evidence
    total = sum(account.balance + account.held for account in evidence.accounts)
    if total != evidence.opening_total:
        yield None, f"there were {evidence.opening_total}, now there are {total}"
    expected = _replayed(evidence.effects)
    for account in evidence.accounts:
        moved = expected.get((account.participant, account.account), Counter())
        for column, opening in (("balance", evidence.opening_balance), ("held", 0), ("incoming", 0)):
            if getattr(account, column) != opening + moved[column]:
                where = f"{account.participant}, account {account.account}"
                yield (
                    None,
                    f"{where}: {column} is {getattr(account, column)}, its effects make {opening + moved[column]}",
                )


def _replayed(effects: Sequence[Effect]) -> Mapping[tuple[str, int], Counter[str]]:
    moved: dict[tuple[str, int], Counter[str]] = defaultdict(Counter)
    for effect in effects:
        for column, sign in CHANGES[effect.kind, effect.operation].items():
            moved[effect.participant, effect.account][column] += sign * effect.amount
    return moved


# --- what is counted, and is no violation ------------------------------------------------------------------------


@dataclass(slots=True)
class StaleReads:
    """Resources that were shown as undecided after somebody was told the decision, and by how much at the most."""

    count: int = 0
    worst_s: float = 0.0
    worst_transaction: str | None = field(default=None)


def stale_reads(evidence: Evidence) -> StaleReads:
    """A replica shows what it works on from memory, so it may be behind until it notices that it was overtaken."""
    found = StaleReads()
    for transaction_id, notes in Case(evidence).notes.items():
        decided_at = min((note.seen_at for note in notes if note.decided), default=float("inf"))
        for note in notes:
            if note.decision == "undecided" and note.sent_at > decided_at:
                found.count += 1
                if note.sent_at - decided_at > found.worst_s:
                    found.worst_s, found.worst_transaction = note.sent_at - decided_at, transaction_id
    return found
