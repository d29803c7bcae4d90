"""Lists, pages and totals: what they show, in which order, and that rows that come meanwhile shift nothing."""

from dataclasses import replace
from uuid import UUID

import pytest
from sqlalchemy import Engine, text

from app.protocol.values import Branch, BranchPhase, HungReason, Resolution, Settled
from app.storage import calls, expressions, queries, transactions
from app.storage.coordinator_id import find_coordinator_id
from app.storage.engines import make_engine
from app.storage.errors import DatabaseUnavailableError, translating
from app.storage.migrations import migrate
from holdfast.json_text import checked
from holdfast.wire import Answer, Decision, Operation
from tests.harness.databases import on_servers
from tests.harness.transactions import CAR, call, found, recorded, transaction, written

FLIGHT = Branch(name="flight", participant="flight")
REFUSED, UNANSWERED = HungReason.CONFIRM_REFUSED, HungReason.CONFIRM_UNANSWERED


def numbers(page: queries.Page) -> list[int]:
    return [int(each.id[-12:]) for each in page.transactions]


def all_numbers(engine: Engine, wanted: queries.Filter, limit: int) -> list[list[int]]:
    """What each page of a list shows, until there is no next one."""
    pages = [found(engine, queries.list_newest, wanted, limit, None)]
    while pages[-1].next_after is not None:
        pages.append(found(engine, queries.list_newest, wanted, limit, *pages[-1].next_after))
    return [numbers(page) for page in pages]


def hang(engine: Engine, number: int, since: float, *reasons: HungReason | None, name: str | None = None) -> None:
    """The nth transaction, of which the car, and then the flight, hang for these reasons."""
    branches = [replace(b, hung_reason=reason) for b, reason in zip((CAR, FLIGHT), reasons, strict=False)]
    made = transaction(number, *branches, name=name, decision=Decision.CONFIRM, hung_since=since)
    before = replace(made, branches=tuple(replace(b, hung_reason=None) for b in branches))
    recorded(engine, before)
    written(engine, transactions.save, transactions.Save(before=before, after=made))


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        (queries.Filter(), [5, 4, 3, 2, 1]),
        (queries.Filter(phase="trying"), [3, 2, 1]),
        (queries.Filter(phase="cancelled"), [4]),
        (queries.Filter(name="order"), [4, 2]),
        (queries.Filter(reference="r-1"), [2, 1]),
        (queries.Filter(reference="R-1"), []),
        (queries.Filter(reference="r-1 "), []),
        (queries.Filter(participant="flight"), [3, 2]),
        (queries.Filter(participant="flight", reference="r-1"), [2]),
        (queries.Filter(hung=True), [5]),
        (queries.Filter(hung=False, phase="trying", name="order"), [2]),
        (queries.Filter(name="' OR 1=1 --"), []),
    ],
)
def test_a_list_shows_what_matches_every_filter_newest_first(
    engine: Engine, wanted: queries.Filter, expected: list[int]
) -> None:
    ended = transaction(4, name="order", decision=Decision.CANCEL, finished_at=9.0, wake_at=None)
    both = transaction(2, CAR, FLIGHT, name="order", reference="r-1")
    recorded(engine, transaction(1, reference="r-1"), both, transaction(3, FLIGHT), ended)
    hang(engine, 5, 7.0, REFUSED)
    assert numbers(found(engine, queries.list_newest, wanted, 10, None)) == expected


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        (queries.Filter(outcome="confirmed"), [3, 1]),
        (queries.Filter(outcome="cancelled"), [6, 4]),
        (queries.Filter(outcome="mixed"), [5, 2]),
        (queries.Filter(outcome="mixed", phase="confirmed"), [2]),
        (queries.Filter(outcome="mixed", phase="cancelled"), [5]),
        (queries.Filter(outcome="confirmed", phase="cancelled"), []),
        (queries.Filter(outcome="cancelled", phase="confirmed"), []),
        (queries.Filter(outcome="cancelled", phase="cancelled"), [6, 4]),
        (queries.Filter(outcome="mixed", hung=False, participant="car", name="n-5"), [5]),
        (queries.Filter(phase="cancelled"), [6, 5, 4]),
        (queries.Filter(phase="cancelling"), [8]),
    ],
)
def test_a_list_shows_one_outcome(engine: Engine, wanted: queries.Filter, expected: list[int]) -> None:
    confirm, cancel = Decision.CONFIRM, Decision.CANCEL
    settled: dict[int, tuple[Decision, Settled | None]] = {
        1: (confirm, None),
        2: (confirm, Settled.CANCELLED),
        3: (confirm, Settled.CONFIRMED),
        4: (cancel, None),
        5: (cancel, Settled.CONFIRMED),
        6: (cancel, Settled.CANCELLED),
    }
    for number, (decision, as_) in settled.items():
        before = transaction(number, CAR, FLIGHT, name=f"n-{number}", decision=decision)
        recorded(engine, before)
        ended = replace(before, branches=(resolved(CAR, as_), FLIGHT), finished_at=9.0, wake_at=None)
        written(engine, transactions.save, transactions.Save(before=before, after=ended))
    recorded(engine, transaction(7))
    recorded(engine, transaction(8, resolved(CAR, Settled.CONFIRMED), FLIGHT, decision=cancel))  # not finished yet
    assert numbers(found(engine, queries.list_newest, wanted, 10, None)) == expected
    assert all_numbers(engine, wanted, 1) == ([[n] for n in expected] or [[]])


def resolved(branch: Branch, settled: Settled | None) -> Branch:
    """The branch as a person settled it, or as it is."""
    if settled is None:
        return branch
    resolution = Resolution(settled=settled, by="ops", at=8.0, reason="seen")
    return replace(branch, phase=BranchPhase.RESOLVED, resolution=resolution)


def test_pages_have_no_gaps_and_no_duplicates_while_rows_are_inserted(engine: Engine) -> None:
    recorded(engine, *(transaction(n) for n in range(0, 40, 2)))
    seen: list[int] = []
    before_id: tuple[str, ...] | None = (transaction(999).id,)
    while before_id:
        page = found(engine, queries.list_newest, queries.Filter(), 3, *before_id)
        seen += numbers(page)
        before_id = page.next_after
        recorded(engine, transaction(100 + len(seen)), transaction(len(seen) * 2 + 1, name="in between"))
    assert [n for n in seen if n % 2 == 0] == list(range(38, -1, -2))
    assert len(seen) == len(set(seen)) == len(sorted(seen, reverse=True))
    assert seen == sorted(seen, reverse=True)


def test_a_transaction_with_several_branches_at_one_participant_is_listed_once(engine: Engine) -> None:
    recorded(engine, *(transaction(n, FLIGHT, replace(FLIGHT, name="back"), name="n") for n in range(5)))
    assert all_numbers(engine, queries.Filter(participant="flight"), 2) == [[4, 3], [2, 1], [0]]
    assert all_numbers(engine, queries.Filter(participant="flight", name="n"), 2) == [[4, 3], [2, 1], [0]]


def test_a_row_that_can_not_be_read_is_left_out_and_ends_no_list(engine: Engine) -> None:
    recorded(engine, *map(transaction, range(10)))
    for number in range(10):
        hang(engine, 20 + number, float(number // 3), REFUSED)
    odd = [transaction(n).id for n in (1, 6, 7, 20, 21, 25)]
    with engine.execution_options(holdfast_writes=True).begin() as connection:
        for id_ in odd:
            connection.execute(text("UPDATE transactions SET progress = '{' WHERE id = :id"), {"id": id_})
    assert all_numbers(engine, queries.Filter(phase="trying"), 2) == [[9, 8], [], [5, 4], [3, 2], [0]]
    first = found(engine, queries.list_hung, queries.HungFilter(), 6, None)
    assert numbers(first) == [22, 23, 24]
    rest = found(engine, queries.list_hung, queries.HungFilter(), 6, first.next_after)
    assert (numbers(rest), rest.next_after) == ([26, 27, 28, 29], None)


def test_a_page_ends_early_when_its_documents_are_large(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(expressions, "READ_BYTES_MAX", 10_000)
    large = {2: 4_000, 3: 4_000, 4: 4_000, 6: 50_000}
    for number in range(10):
        payload = "\u20ac" * (large.get(number, 0) // 3)  # three bytes each
        recorded(engine, transaction(number, replace(CAR, payload=checked(f'"{payload}"'.encode()))))
    assert all_numbers(engine, queries.Filter(), 3) == [[9, 8, 7], [6], [5, 4, 3], [2, 1, 0]]
    assert all_numbers(engine, queries.Filter(phase="trying", hung=False), 9) == [[9, 8, 7], [6], [5, 4, 3], [2, 1, 0]]


def test_a_page_looks_at_so_many_rows_and_no_more(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queries, "CANDIDATES_MAX", 4)
    recorded(engine, *(transaction(n, name="a" if n in (1, 2, 8, 9) else "b", reference="r") for n in range(12)))
    assert all_numbers(engine, queries.Filter(name="a", reference="r"), 3) == [[9, 8], [], [2, 1], []]
    assert all_numbers(engine, queries.Filter(name="a", reference="r"), 1) == [[9], [8], [2], [1]]
    assert all_numbers(engine, queries.Filter(name="a"), 3) == [[9, 8, 2], [1]]
    assert all_numbers(engine, queries.Filter(name="a", hung=False), 9) == [[9, 8, 2, 1], []]
    assert all_numbers(engine, queries.Filter(name="b", participant="flight"), 9) == [[]]


def test_hung_transactions_are_listed_oldest_first_page_by_page(engine: Engine) -> None:
    for number in range(12):
        hang(engine, number, float(100 - number // 3), REFUSED)  # three since the same moment, each time
    recorded(engine, transaction(50))
    expected = [n for start in (9, 6, 3, 0) for n in range(start, start + 3)]
    seen: list[int] = []
    after: tuple[float, str] | None = (0.0, "")
    while after:
        page = found(engine, queries.list_hung, queries.HungFilter(), 4, after)
        seen += numbers(page)
        after = page.next_after
    assert seen == expected


@pytest.mark.parametrize(
    ("wanted", "listed", "totals"),
    [
        (queries.HungFilter(), [1, 3, 2], {("car", REFUSED): 2, ("car", UNANSWERED): 1, ("flight", UNANSWERED): 1}),
        (queries.HungFilter(participant="flight"), [3], {("flight", UNANSWERED): 1}),
        (queries.HungFilter(name="order"), [1], {("car", REFUSED): 1}),
        (queries.HungFilter(hung_before=20.0), [1, 3], {("car", REFUSED): 2, ("flight", UNANSWERED): 1}),
        (queries.HungFilter(hung_before=20.0, participant="car"), [1, 3], {("car", REFUSED): 2}),
        (queries.HungFilter(name="order", hung_before=9.0), [], {}),
    ],
)
def test_hung_transactions_are_filtered_and_totalled_alike(
    engine: Engine, wanted: queries.HungFilter, listed: list[int], totals: dict[tuple[str, str], int]
) -> None:
    hang(engine, 1, 10.0, REFUSED, name="order")
    hang(engine, 2, 30.0, UNANSWERED, None)
    hang(engine, 3, 20.0, REFUSED, UNANSWERED)
    assert numbers(found(engine, queries.list_hung, wanted, 10, None)) == listed
    counted = {(total.participant, total.reason): total.count for total in found(engine, queries.total_hung, wanted)}
    assert counted == totals
    assert found(engine, queries.count_hung) == 3


def test_calls_are_listed_oldest_first_page_by_page(engine: Engine) -> None:
    called, other = transaction(1), transaction(2)
    recorded(engine, called, other)
    odd = call(called, 4, answer=Answer.UNANSWERED, http_status=None, error="no answer", response=None)
    made = [call(called, n) for n in (3, 1, 2)] + [
        odd,
        call(called, 5, operation=Operation.CANCEL, response="\u20ac '\""),
    ]
    for one in made:
        (called,) = written(engine, transactions.save, transactions.Save(before=called, after=called, calls=(one,)))
    written(engine, transactions.save, transactions.Save(before=other, after=other, calls=(call(other, 1),)))
    seen = []
    after_id = 0
    while page := found(engine, calls.list_calls, called.id, 2, after_id):
        seen += [one for _, one in page]
        after_id = page[-1][0]
    assert seen == made


def test_what_is_there_is_found_and_counted(engine: Engine) -> None:
    assert found(engine, transactions.next_wake_at) is None
    ended = transaction(3, decision=Decision.CANCEL, finished_at=9.0, wake_at=None)
    recorded(engine, transaction(1), transaction(2), ended)
    assert found(engine, transactions.find, ended.id) == ended
    assert found(engine, transactions.find, "unknown") is None
    assert (found(engine, queries.count_unfinished), found(engine, transactions.next_wake_at)) == (2, 61.0)


def decided(decision: Decision, deadline: float, *, finished: bool = False) -> queries.StoredDecision:
    return queries.StoredDecision(decision=decision, deadline=deadline, finished=finished)


def asked_by(name: str | None, answer: queries.StoredDecision) -> queries.StoredDecision:
    """The same about a branch of this name, which is the name of its participant, too, if there is such a branch."""
    return replace(answer, participant=name if name in ("car", "flight") else None)


def test_a_decision_is_that_of_the_transaction_or_of_a_branch(engine: Engine) -> None:
    undecided = transaction(1, CAR, FLIGHT)
    confirming = transaction(2, CAR, FLIGHT, decision=Decision.CONFIRM)
    confirmed = transaction(3, CAR, FLIGHT, decision=Decision.CONFIRM, finished_at=9.0, wake_at=None)
    cancelled = transaction(4, CAR, FLIGHT, decision=Decision.CANCEL, finished_at=9.0, wake_at=None)
    recorded(engine, undecided, confirming, confirmed, cancelled)
    strangers = ("hotel", "Car", "car ", "", "c%", "_ar", "car\x00", "\N{AIRPLANE}", "x" * 5000)
    expected = [
        (undecided.id, (None, "car", "flight", *strangers), decided(Decision.UNDECIDED, 31.0)),
        (confirming.id, (None, "car", "flight"), decided(Decision.CONFIRM, 32.0)),
        (confirming.id, strangers, decided(Decision.CANCEL, 32.0)),
        (confirmed.id, (None, "car", "flight"), decided(Decision.CONFIRM, 33.0, finished=True)),
        (confirmed.id, strangers, decided(Decision.CANCEL, 33.0, finished=True)),
        (cancelled.id, (None, "car", "flight", *strangers), decided(Decision.CANCEL, 34.0, finished=True)),
        ("unknown", (None, "car", *strangers), None),
    ]
    asked = [(id_, name) for id_, names, _ in expected for name in names]
    answers = [answer and asked_by(name, answer) for _, names, answer in expected for name in names]
    for (id_, name), answer in zip(asked, answers, strict=True):
        assert found(engine, queries.find_decision, id_, name) == answer, (id_, name)
    assert written(engine, queries.find_decisions_for_sure, *asked) == answers


@on_servers
def test_a_server_that_only_reads_does_not_say_for_sure_that_it_has_no_transaction(engine: Engine) -> None:
    """A standby, or a primary that was demoted: it may lack what was committed elsewhere."""
    on_mysql = engine.dialect.name == "mysql"
    with engine.connect() as connection:
        connection.execute(text("SET SESSION TRANSACTION READ ONLY" if on_mysql else "SET TRANSACTION READ ONLY"))
        assert queries.find_decision(connection, "unknown") is None
        with pytest.raises(DatabaseUnavailableError, match=r"read-only|READ ONLY"), translating():
            queries.find_decisions_for_sure(connection, [("unknown", None)])


def test_the_coordinator_has_one_id(database_url: str) -> None:
    migrate(database_url)
    engine = make_engine(database_url)
    first = found(engine, find_coordinator_id)
    migrate(database_url)
    assert found(engine, find_coordinator_id) == first == str(UUID(first))
    engine.dispose()
