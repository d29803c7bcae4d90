"""How a story is judged and told: a state that is wrong anywhere makes the demo fail, and says where."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final

import pytest

from examples.demo import story as storytelling
from examples.demo.__main__ import told, verdict
from examples.demo.ledger import Expectation, Ledger, reconcile
from examples.demo.story import WIDTH, Event, Story, StoryFailed, events_of, merged

BEFORE: Final = Ledger(
    on_hand=100,
    reserved=0,
    sold=0,
    held_cents=0,
    charged_cents=0,
    available_cents=1000_00,
    authorised_cents=0,
    captured_cents=0,
    room=40,
    parcels_reserved=0,
    parcels_booked=0,
    holds={"inventory": 0, "payment": 0, "shipping": 0},
)
SOLD_TWO: Final = replace(
    BEFORE, on_hand=98, sold=2, charged_cents=50_00, captured_cents=50_00, available_cents=950_00, parcels_booked=2
)
WRONG: Final[list[tuple[dict[str, Any], str]]] = [
    ({"reserved": 1}, "inventory: reserved"),
    ({"sold": 3, "on_hand": 97}, "inventory: sold"),
    ({"on_hand": 99}, "inventory: on hand + sold"),
    ({"held_cents": 1}, "payment: held"),
    ({"charged_cents": 49_00, "captured_cents": 49_00, "available_cents": 951_00}, "payment: charged"),
    ({"authorised_cents": 1, "available_cents": 949_99}, "gateway: authorised"),
    ({"captured_cents": 49_00, "available_cents": 951_00}, "gateway: captured, as payment has charged"),
    ({"available_cents": 950_01}, "gateway: available + authorised + captured"),
    ({"parcels_reserved": 1}, "shipping: reserved"),
    ({"parcels_booked": 1}, "shipping: booked"),
    ({"room": 39}, "shipping: room"),
    ({"holds": {"inventory": 0, "payment": 1, "shipping": 0}}, "open holds"),
]


def missed(after: Ledger, *, booked: int = 2) -> list[str]:
    return [each.what for each in reconcile(BEFORE, after, booked=booked, booked_cents=booked * 25_00) if not each.met]


def story(*expectations: Expectation) -> Story:
    return Story("a title", "a lesson", began_at=0.0, expectations=list(expectations))


def test_what_adds_up_is_as_it_must_be() -> None:
    assert missed(SOLD_TWO) == []
    assert missed(BEFORE, booked=0) == []


@pytest.mark.parametrize(("wrong", "what"), WRONG)
def test_every_number_that_is_wrong_is_found(wrong: dict[str, Any], what: str) -> None:
    assert what in missed(replace(SOLD_TWO, **wrong))


def test_every_check_was_seen_to_fail() -> None:
    checks = {each.what for each in reconcile(BEFORE, SOLD_TWO, booked=2, booked_cents=50_00)}
    assert checks == {what for _, what in WRONG}


def test_one_story_that_did_not_end_as_it_must_fails_the_demo(capsys: pytest.CaptureFixture[str]) -> None:
    good, bad = story(Expectation("end", "confirmed", "confirmed")), story(Expectation("end", "confirmed", "trying"))
    assert verdict([good, good], expected=2, took_s=1) == 0
    assert verdict([good, bad], expected=2, took_s=1) == 1
    assert verdict([good], expected=2, took_s=1) == 1, "one was not played"
    assert verdict([story()], expected=1, took_s=1) == 1, "nothing was checked"
    assert "FAILED    end: expected 'confirmed', found 'trying'" in "\n".join(bad.lines())
    assert "not: a title" in capsys.readouterr().out


@pytest.mark.parametrize("goes_wrong", [StoryFailed("nothing came"), None])
async def test_a_story_that_stops_on_the_way_has_failed(goes_wrong: Exception | None) -> None:
    async def play(_: object, story: Story) -> None:
        story.expect("so far", 1, 1)
        if goes_wrong is not None:
            raise goes_wrong

    played = await told(story(), None, play)  # type: ignore[arg-type]
    assert played.ended_as_it_must == (goes_wrong is None)


def call(operation: str, answer: str, *, at: int = 1, error: str | None = None, branch: str = "payment") -> Any:
    started_at = f"1970-01-01T00:00:{at:02}.000000Z"
    return {"branch": branch, "operation": operation, "started_at": started_at, "answer": answer, "error": error}


TRANSACTION: Final[dict[str, Any]] = {
    "phase": "cancelled",
    "decision": "cancel",
    "reason": {"code": "refused", "detail": "insufficient funds"},
    "branches": [{}, {}],
    "created_at": "1970-01-01T00:00:00.000000Z",
    "decided_at": "1970-01-01T00:00:02.000000Z",
    "finished_at": None,
}


def test_the_record_of_a_transaction_becomes_a_timeline() -> None:
    calls = [
        call("try", "refused", error="insufficient funds"),
        call("try", "succeeded", branch="inventory"),
        call("cancel", "succeeded", at=3),
        call("cancel", "succeeded", at=3, branch="inventory"),
    ]
    told = [(each.at, each.whom, each.what, each.answer) for each in merged(events_of(TRANSACTION, calls))]
    assert told == [
        (0, "", "records: 2 branches, nothing sent yet", ""),
        (1, "payment", "try", "refused: insufficient funds"),
        (1, "inventory", "try", "held"),
        (2, "", "decides: CANCEL", ""),
        (3, "payment", "cancel", "nothing was held"),
        (3, "inventory", "cancel", "released"),
    ]


def test_what_is_repeated_in_vain_is_one_line() -> None:
    calls = [call("cancel", "unanswered", at=at, error="ConnectError: refused") for at in (3, 4, 6)]
    calls += [call("cancel", "unanswered", at=5, error="ConnectError: refused", branch="inventory")]
    calls += [call("cancel", "succeeded", at=7)]
    lines = [each for each in merged(events_of(TRANSACTION, calls)) if each.whom]
    assert lines == [
        Event(3, "coordinator", "everybody", "cancel", "no answer (ConnectError)", times=4, until=6),
        Event(7, "coordinator", "payment", "cancel", "released"),
    ]


def test_a_story_fits_the_page_and_ends_with_its_balances(monkeypatch: pytest.MonkeyPatch) -> None:
    told = story(Expectation("end", 1, 1))
    told.tell(TRANSACTION, [call("try", "refused", error="very " * 40)], label="order-1")
    told.happened("something " * 20)
    told.ledger = SOLD_TWO
    lines = told.lines()
    assert max(len(line) for line in lines) <= WIDTH
    assert "   outcome   order-1 cancelled (refused: insufficient funds)" in lines
    assert any("available 950.00 + captured 50.00 = 1000.00" in line for line in lines)
    assert lines[-1] == "   checks    1 of 1 as expected"


@pytest.mark.parametrize(("is_a_terminal", "shown"), [(True, "\x1b[1mx\x1b[0m"), (False, "x")])
def test_only_a_terminal_gets_colours(monkeypatch: pytest.MonkeyPatch, is_a_terminal: bool, shown: str) -> None:
    stdout: Callable[[], bool] = lambda: is_a_terminal  # noqa: E731
    monkeypatch.setattr("sys.stdout.isatty", stdout, raising=False)
    assert storytelling.bold("x") == shown
