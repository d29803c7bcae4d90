"""The checker finds what is wrong: one violation of each rule is planted into evidence that is otherwise clean."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final

import pytest

from tests.harness.checker import RULES, check, stale_reads
from tests.harness.evidence import Account, Effect, Evidence, HistoryCall, Hold, Known, Request
from tests.harness.ledger import CHANGES, OPENING_BALANCE
from tests.harness.notes import Note

OUTCOMES: Final = {"t-confirmed": "confirmed", "t-cancelled": "cancelled"}
BRANCHES: Final = {"debit-0": "north", "credit-1": "south"}
KINDS: Final = {"debit-0": "debit", "credit-1": "credit"}


def request(transaction_id: str, branch: str, operation: str, at: float, **changes: Any) -> Request:
    made = Request(
        participant=BRANCHES[branch],
        operation=operation,
        transaction_id=transaction_id,
        branch=branch,
        attempt=1,
        arrived_at=at,
        answered_at=at + 0.2,
        status=200,
    )
    return replace(made, **changes)


def effect(transaction_id: str, branch: str, operation: str, at: float) -> Effect:
    return Effect(
        participant=BRANCHES[branch],
        transaction_id=transaction_id,
        branch=branch,
        operation=operation,
        kind=KINDS[branch],
        account=0,
        amount=30,
        at=at,
    )


def note(transaction_id: str | None, at: float, **changes: Any) -> Note:
    made = Note(
        kind="get",
        replica=0,
        sent_at=at,
        seen_at=at + 0.1,
        status=200,
        key=f"key of {transaction_id}",
        transaction_id=transaction_id,
    )
    return replace(made, **changes)


def known(transaction_id: str, outcome: str) -> Known:
    return Known(
        transaction_id=transaction_id,
        reference=f"key of {transaction_id}",
        phase=outcome,
        decision={"confirmed": "confirm", "cancelled": "cancel"}[outcome],
        outcome=outcome,
        hung=False,
        branches=BRANCHES,
        created_at=0.0,
        finished_at=5.0,
    )


def accounts(effects: list[Effect]) -> list[Account]:
    rows = {name: {"balance": OPENING_BALANCE, "held": 0, "incoming": 0} for name in BRANCHES.values()}
    for each in effects:
        for column, sign in CHANGES[each.kind, each.operation].items():
            rows[each.participant][column] += sign * each.amount
    return [Account(participant=name, account=0, **row) for name, row in rows.items()]


def clean() -> Evidence:
    """Two transactions as they should be, one confirmed, one cancelled; each was tried, decided, told and is over."""
    ends = {"t-confirmed": "confirm", "t-cancelled": "cancel"}
    requests, effects = [], []
    for transaction_id, end in ends.items():
        for branch in BRANCHES:
            for operation, at in (("try", 1.0), (end, 3.0)):
                requests.append(request(transaction_id, branch, operation, at))
                effects.append(effect(transaction_id, branch, operation, at + 0.1))
    notes = []
    for transaction_id, end in ends.items():
        notes += [note(transaction_id, 0.5, kind="begin", status=202, decision="undecided")]
        notes += [note(transaction_id, 4.0, decision=end, outcome=OUTCOMES[transaction_id])]
        notes += [note(transaction_id, 0.6, kind="inquiry", key=None, decision="undecided")]
    return Evidence(
        opening_balance=OPENING_BALANCE,
        opening_total=2 * OPENING_BALANCE,
        requests=requests,
        effects=effects,
        accounts=accounts(effects),
        notes=notes,
        known={transaction_id: known(transaction_id, outcome) for transaction_id, outcome in OUTCOMES.items()},
        histories={
            transaction_id: [
                HistoryCall(branch=branch, operation=operation, answer="succeeded")
                for branch in BRANCHES
                for operation in ("try", end)
            ]
            for transaction_id, end in ends.items()
        },
    )


def with_notes(*more: Note) -> Evidence:
    return replace(clean(), notes=[*clean().notes, *more])


def with_requests(*more: Request) -> Evidence:
    return replace(clean(), requests=[*clean().requests, *more])


def with_effects(change: Callable[[list[Effect]], list[Effect]]) -> Evidence:
    """The accounts follow the effects, so that only the effects themselves are wrong."""
    effects = change(list(clean().effects))
    return replace(clean(), effects=effects, accounts=accounts(effects))


def with_known(transaction_id: str, **changes: Any) -> Evidence:
    every = dict(clean().known)
    return replace(clean(), known=every | {transaction_id: replace(every[transaction_id], **changes)})


def without(transaction_id: str) -> Evidence:
    kept = {each: value for each, value in clean().known.items() if each != transaction_id}
    return replace(clean(), known=kept, histories={})


def with_history(transaction_id: str, *calls: HistoryCall) -> Evidence:
    return replace(clean(), histories=dict(clean().histories) | {transaction_id: calls})


def with_account(**changes: Any) -> Evidence:
    first, *others = clean().accounts
    return replace(clean(), accounts=[replace(first, **changes), *others])


def also_confirmed(effects: list[Effect]) -> list[Effect]:
    """One branch of the cancelled transaction took effect after all."""
    return [
        effect("t-cancelled", "debit-0", "confirm", 3.1)
        if (each.transaction_id, each.branch, each.operation) == ("t-cancelled", "debit-0", "cancel")
        else each
        for each in effects
    ]


def lacking_confirm(effects: list[Effect]) -> list[Effect]:
    return [each for each in effects if (each.branch, each.operation) != ("credit-1", "confirm")]


def held_late(effects: list[Effect]) -> list[Effect]:
    return [
        replace(each, at=9.0) if (each.transaction_id, each.operation) == ("t-cancelled", "try") else each
        for each in effects
    ]


HELD_LATE_CONFIRMED: Final = [
    replace(each, at=3.05)
    if (each.transaction_id, each.branch, each.operation) == ("t-confirmed", "debit-0", "try")
    else each
    for each in clean().effects
]
TRY_SUCCEEDED: Final = HistoryCall(branch="debit-0", operation="try", answer="succeeded")
LEFT: Final = Hold(participant="north", transaction_id="t-confirmed", branch="debit-0", state="held")
STRANGER: Final = request("t-unknown", "debit-0", "try", 1.0)

PLANTED: Final = [
    ("nothing_acknowledged_is_missing", without("t-confirmed")),
    ("acknowledged_stays", with_notes(note("t-confirmed", 2.0, decision="cancel"))),
    ("acknowledged_stays", with_notes(note("t-cancelled", 2.0, decision="cancel", outcome="confirmed"))),
    ("decision_never_changes", with_notes(note("t-cancelled", 2.0, kind="decision", decision="confirm"))),
    ("decision_never_changes", with_notes(note("t-confirmed", 4.2, kind="inquiry", decision="undecided"))),
    ("one_key_one_transaction", with_notes(note("t-confirmed", 4.2, key="key of t-cancelled"))),
    ("one_key_one_transaction", with_known("t-confirmed", reference="key of t-cancelled")),
    ("answers_make_sense", with_notes(note("t-confirmed", 4.2, status=404, problem="unknown-transaction"))),
    ("answers_make_sense", with_notes(note(None, 4.2, kind="begin", status=409, problem="idempotency-key-conflict"))),
    ("everything_finished", with_known("t-confirmed", phase="trying", decision="undecided", outcome=None)),
    ("everything_finished", with_known("t-confirmed", outcome="mixed")),
    ("everything_finished", with_known("t-confirmed", hung=True)),
    ("participants_know_nothing_unknown", with_requests(STRANGER)),
    ("history_explains_the_end", with_history("t-confirmed", TRY_SUCCEEDED)),
    ("history_explains_the_end", with_history("t-cancelled", TRY_SUCCEEDED)),
    ("history_explains_the_end", with_history("t-cancelled", *clean().histories["t-confirmed"])),
    ("never_both_decisions", with_requests(request("t-confirmed", "credit-1", "cancel", 3.2, status=409))),
    ("calls_follow_the_decision", with_requests(request("t-cancelled", "debit-0", "confirm", 2.0, status=None))),
    ("nobody_refuses_what_was_decided", with_requests(request("t-confirmed", "debit-0", "confirm", 3.5, status=409))),
    ("confirm_only_when_all_hold", replace(clean(), effects=HELD_LATE_CONFIRMED)),
    ("each_effect_once", with_effects(lambda effects: [*effects, effects[1]])),
    ("participants_agree", with_effects(also_confirmed)),
    ("effects_are_the_outcome", with_effects(also_confirmed)),
    ("effects_are_the_outcome", with_effects(lacking_confirm)),
    ("no_try_after_its_cancel", with_effects(held_late)),
    ("no_hold_left", replace(clean(), holds=[LEFT])),
    ("no_hold_left", with_account(held=30)),
    ("no_hold_left", with_account(incoming=30)),
    ("money_is_conserved", with_account(balance=OPENING_BALANCE)),
    ("money_is_conserved", replace(clean(), opening_total=2 * OPENING_BALANCE + 1)),
]  # fmt: skip


@pytest.mark.parametrize(("rule", "evidence"), PLANTED, ids=[f"{n}-{rule}" for n, (rule, _) in enumerate(PLANTED)])
def test_a_planted_violation_is_found(rule: str, evidence: Evidence) -> None:
    assert rule in {violation.rule for violation in check(evidence)}


def test_every_rule_was_seen_to_fail() -> None:
    assert {rule for rule, _ in PLANTED} == RULES.keys()


def test_what_is_as_it_should_be_is_let_through() -> None:
    assert check(clean()) == []


def test_what_chaos_does_to_a_sound_system_is_let_through() -> None:
    """Calls that died, were repeated, failed or came late; clients that got no answer; a Try that never held."""
    evidence = with_requests(
        request("t-confirmed", "debit-0", "try", 0.8, answered_at=None, status=None),
        request("t-confirmed", "debit-0", "confirm", 3.5, status=500, fault="fail-before"),
        request("t-cancelled", "debit-0", "try", 3.6, status=409),
        request("t-cancelled", "debit-0", "cancel", 3.7),
    )
    notes = [*evidence.notes, note(None, 0.1, kind="begin", status=0), note(None, 0.2, kind="begin", status=503)]
    assert check(replace(evidence, notes=notes)) == []


def test_a_read_from_memory_may_be_stale_and_is_counted() -> None:
    evidence = with_notes(note("t-confirmed", 6.0, decision="undecided"))
    assert check(evidence) == []
    found = stale_reads(evidence)
    assert (found.count, found.worst_transaction) == (1, "t-confirmed")
    assert found.worst_s == pytest.approx(1.9)
    assert stale_reads(clean()).count == 0
