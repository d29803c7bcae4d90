"""What lies where in all services together, and whether it adds up. Pure: numbers in, expectations out."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

PARTICIPANTS: Final = ("inventory", "payment", "shipping")


@dataclass(frozen=True, slots=True)
class Expectation:
    """Something that must be so, and what was found."""

    what: str
    expected: object
    found: object

    @property
    def met(self) -> bool:
        return self.expected == self.found


@dataclass(frozen=True, slots=True, kw_only=True)
class Ledger:
    """Pieces, cents and parcels over all articles, customers and days."""

    on_hand: int
    reserved: int
    sold: int
    held_cents: int
    charged_cents: int
    available_cents: int
    authorised_cents: int
    captured_cents: int
    room: int
    parcels_reserved: int
    parcels_booked: int
    holds: Mapping[str, int]

    @classmethod
    def of(cls, balances: Mapping[str, Any]) -> "Ledger":
        """From what `GET /balances` of each service answered."""
        stock, days = balances["inventory"]["stock"], balances["shipping"]["days"]
        accounts, cards = balances["payment"]["accounts"], balances["gateway"]["cards"]
        return cls(
            on_hand=_sum(stock, "on_hand"),
            reserved=_sum(stock, "reserved"),
            sold=_sum(stock, "sold"),
            held_cents=_sum(accounts, "held"),
            charged_cents=_sum(accounts, "charged"),
            available_cents=_sum(cards, "available"),
            authorised_cents=_sum(cards, "authorised"),
            captured_cents=_sum(cards, "captured"),
            room=_sum(days, "room"),
            parcels_reserved=_sum(days, "reserved"),
            parcels_booked=_sum(days, "booked"),
            holds={name: len(balances[name]["holds"]) for name in PARTICIPANTS},
        )

    @property
    def lines(self) -> list[str]:
        """For people: what there is on the left, what is only held on the right."""
        stock, money = self.on_hand + self.sold, _money(self)
        available, captured = euros(self.available_cents), euros(self.captured_cents)
        free = self.room - self.parcels_reserved - self.parcels_booked
        rows = [
            ("inventory", f"on hand {self.on_hand} + sold {self.sold} = {stock}", f"reserved {self.reserved}"),
            ("payment", f"charged {euros(self.charged_cents)}", f"held {euros(self.held_cents)}"),
            (
                "gateway",
                f"available {available} + captured {captured} = {euros(money)}",
                f"authorised {euros(self.authorised_cents)}",
            ),
            (
                "shipping",
                f"free {free} + booked {self.parcels_booked} = {self.room}",
                f"reserved {self.parcels_reserved}",
            ),
        ]
        return [f"{name:<10} {there:<48} {held}" for name, there, held in rows]


def reconcile(before: Ledger, after: Ledger, *, booked: int, booked_cents: int) -> list[Expectation]:
    """What must be so when every transaction has ended and `booked` pieces were sold meanwhile."""
    return [
        Expectation("open holds", dict.fromkeys(PARTICIPANTS, 0), dict(after.holds)),
        Expectation("inventory: reserved", 0, after.reserved),
        Expectation("inventory: sold", before.sold + booked, after.sold),
        Expectation("inventory: on hand + sold", before.on_hand + before.sold, after.on_hand + after.sold),
        Expectation("payment: held", 0, after.held_cents),
        Expectation("payment: charged", before.charged_cents + booked_cents, after.charged_cents),
        Expectation("gateway: authorised", 0, after.authorised_cents),
        Expectation("gateway: captured, as payment has charged", after.charged_cents, after.captured_cents),
        Expectation("gateway: available + authorised + captured", _money(before), _money(after)),
        Expectation("shipping: reserved", 0, after.parcels_reserved),
        Expectation("shipping: booked", before.parcels_booked + booked, after.parcels_booked),
        Expectation("shipping: room", before.room, after.room),
    ]


def euros(cents: int) -> str:
    """An amount for people."""
    return f"{cents // 100}.{cents % 100:02}"


def _money(ledger: Ledger) -> int:
    return ledger.available_cents + ledger.authorised_cents + ledger.captured_cents


def _sum(rows: list[dict[str, Any]], column: str) -> int:
    return sum(row[column] for row in rows)
