"""A story as it is told: its timeline, its outcome, what had to be so. Knows no network and no process."""

import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from textwrap import wrap
from typing import Any, Final

from examples.demo.ledger import Expectation, Ledger

WIDTH: Final = 100
INDENT: Final = "   "
NO_ANSWER: Final = "no answer"
SEVERAL: Final = "everybody"
_DONE: Final = {
    "try": "held",
    "confirm": "confirmed",
    "cancel": "released",
    "action": "done",
    "compensation": "undone",
}


class StoryFailed(Exception):
    """The story can't go on: something it waits for does not come."""


@dataclass(frozen=True, slots=True)
class Event:
    """Who said what to whom, and what was answered; without `whom`, what simply happened. `at`: since the epoch."""

    at: float
    who: str
    whom: str
    what: str
    answer: str = ""
    times: int = 1
    until: float = 0.0


@dataclass(slots=True)
class Story:
    """One of those that are played. `note` and `expect` while it is played; `text` afterwards."""

    title: str
    lesson: str
    began_at: float = field(default_factory=time.time)
    events: list[Event] = field(default_factory=list)
    outcomes: list[str] = field(default_factory=list)
    expectations: list[Expectation] = field(default_factory=list)
    ledger: Ledger | None = None

    def note(self, who: str, whom: str, what: str, answer: str = "") -> None:
        self.note_at(time.time(), who, whom, what, answer)

    def note_at(self, at: float, who: str, whom: str, what: str, answer: str = "") -> None:
        self.events.append(Event(at, who, whom, what, answer))

    def happened(self, what: str) -> None:
        self.note("", "", what)

    def expect(self, what: str, expected: object, found: object) -> None:
        self.expectations.append(Expectation(what, expected, found))

    def tell(self, transaction: Mapping[str, Any], calls: Sequence[Mapping[str, Any]], label: str = "") -> None:
        """Add what the coordinator has on record of a transaction."""
        self.events += events_of(transaction, calls, label)
        why = transaction["reason"] or {}
        reason = f" ({why['code']}{': ' if why['detail'] else ''}{why['detail'] or ''})" if why else ""
        self.outcomes.append(f"{label}{' ' if label else ''}{transaction['phase']}{reason}")

    @property
    def ended_as_it_must(self) -> bool:
        return bool(self.expectations) and all(each.met for each in self.expectations)

    @property
    def failures(self) -> list[str]:
        missed = [each for each in self.expectations if not each.met]
        return [f"{each.what}: expected {each.expected!r}, found {each.found!r}" for each in missed]

    def lines(self) -> list[str]:
        """The story after its heading: timeline, outcome, balances, checks."""
        lines = [_line(event, self.began_at) for event in merged(self.events)]
        lines += ["", *(f"{'outcome' if not i else '':<9} {outcome}" for i, outcome in enumerate(self.outcomes))]
        if self.ledger is not None:
            lines += [f"{'balances' if not i else '':<9} {line}" for i, line in enumerate(self.ledger.lines)]
        met = sum(each.met for each in self.expectations)
        lines.append(f"{'checks':<9} {met} of {len(self.expectations)} as expected")
        lines += [f"FAILED    {failure}" for failure in self.failures]
        return [cut for line in lines for cut in _fitted(line)]


def events_of(transaction: Mapping[str, Any], calls: Sequence[Mapping[str, Any]], label: str = "") -> list[Event]:
    """The record of a transaction as events; `label` tells it from another in the same story."""
    about = f" {label}" if label else ""
    refused = {
        call["branch"] for call in calls if call["operation"] in ("try", "action") and call["answer"] == "refused"
    }
    events = [
        Event(
            _seconds(call["started_at"]),
            "coordinator",
            call["branch"],
            f"{call['operation']}{about}",
            _answer(call, held=call["branch"] not in refused),
        )
        for call in calls
    ]
    moments = [
        ("created_at", f"records{about}: {len(transaction['branches'])} branches, nothing sent yet"),
        ("decided_at", f"decides{about}: {transaction['decision'].upper()}"),
        ("finished_at", f"has every acknowledgement{f' of {label}' if label else ''}: {transaction['phase']}"),
    ]
    events += [
        Event(_seconds(transaction[at]), "coordinator", "", what) for at, what in moments if transaction[at] is not None
    ]
    return events


def merged(events: Iterable[Event]) -> list[Event]:
    """In order of time; what is said again and again without an answer becomes one line, whoever says it."""
    told: list[Event] = []
    places: dict[tuple[str, str], int] = {}
    for event in sorted(events, key=lambda each: each.at):
        place = places.setdefault((event.what, event.answer), len(told))
        if place == len(told) or not event.answer.startswith(NO_ANSWER):
            told.append(event)
            continue
        first = told[place]
        who = first.who if first.who == event.who else SEVERAL
        whom = first.whom if first.whom == event.whom else SEVERAL
        told[place] = replace(first, who=who, whom=whom, times=first.times + 1, until=event.at)
    return told


def heading(title: str, lesson: str) -> str:
    """What a story is called and what it shows."""
    lines = [bold(title), *(INDENT + line for line in wrap(lesson, WIDTH - len(INDENT)))]
    return "\n".join(lines) + "\n"


def bold(text: str) -> str:
    return f"\x1b[1m{text}\x1b[0m" if sys.stdout.isatty() else text


def _line(event: Event, began_at: float) -> str:
    at = f"{event.at - began_at:+6.2f} s"
    if not event.who:
        return f"{at}  * {event.what}"
    if not event.whom:
        return f"{at}  {event.who} {event.what}"
    again = f", {event.times} x to {event.until - began_at:+.1f} s" if event.times > 1 else ""
    return f"{at}  {event.who:<11} -> {event.whom:<11} {event.what:<16} {event.answer}{again}".rstrip()


def _fitted(line: str) -> list[str]:
    return wrap(line, WIDTH - len(INDENT), initial_indent=INDENT, subsequent_indent=INDENT + " " * 10) or [""]


def _answer(call: Mapping[str, Any], *, held: bool) -> str:
    match call["answer"]:
        case "succeeded":
            return _DONE[call["operation"]] if held else "nothing was held"
        case "refused":
            return f"refused: {call['error']}" if call["error"] else "no: it has happened already"
        case _:
            return f"{NO_ANSWER} ({call['error'].partition(':')[0]})"


def _seconds(at: str) -> float:
    return datetime.fromisoformat(at).timestamp()
