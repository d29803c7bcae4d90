"""Shipping: an optimistic version column.

Sometimes the rule for a hold doesn't fit into one WHERE: here a day's vans are filled by a function in Python. Then
read the row, decide, and write only if the row is still as it was read: its `version` says so. Whoever comes second
reads again; after a few times the call fails, and the coordinator repeats it. No lock is held while Python thinks.

`def` handlers; the payload is a plain dict that pydantic has checked; the SDK makes its own table.
"""

import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI
from pydantic import PositiveInt
from sqlalchemy import CursorResult, create_engine, select, update
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
from typing_extensions import TypedDict  # pydantic asks for this one before Python 3.12

from holdfast import Hold, Participant, Refused

DATA_DIR = os.environ.get("DATA_DIR", ".run")
DATABASE_URL = os.environ.get("DATABASE_URL", f"sqlite:///{DATA_DIR}/shipping.db")
HOLDFAST_URL = os.environ.get("HOLDFAST_URL", "http://127.0.0.1:8000")
HOLDFAST_API_KEY = os.environ.get("HOLDFAST_API_KEY")
HOLD_TTL_MAX_S = float(os.environ.get("HOLD_TTL_MAX_S", "0")) or None  # maximum hold time, in seconds
HOLD_MAX_S = float(os.environ.get("HOLD_MAX_S", "0")) or None  # release without asking after this
REAP_INTERVAL_S = float(os.environ.get("REAP_INTERVAL_S", "5"))
PARCELS_PER_VAN = 10
VANS_AT_FIRST = {"monday": 3, "friday": 1}
ATTEMPTS_MAX = 10


class Base(DeclarativeBase):
    """This service's tables."""


class Day(Base):
    """One day's vans. Every change raises `version`, and names the one that it read."""

    __tablename__ = "days"

    name: Mapped[str] = mapped_column(primary_key=True)
    vans: Mapped[int]
    reserved: Mapped[int] = mapped_column(default=0)
    booked: Mapped[int] = mapped_column(default=0)
    version: Mapped[int] = mapped_column(default=1)


class Parcels(TypedDict):
    """The payload: a number of parcels on a day."""

    day: str
    parcels: PositiveInt


engine = create_engine(DATABASE_URL)
shipping = Participant(
    "shipping",
    engine,
    coordinator_url=HOLDFAST_URL,
    api_key=HOLDFAST_API_KEY,
    hold_ttl_max_s=HOLD_TTL_MAX_S,
    hold_max_s=HOLD_MAX_S,
    reap_interval_s=REAP_INTERVAL_S,
)


@shipping.on_try
def plan(hold: Hold[Parcels], session: Session) -> dict[str, int]:
    """Find room in the vans of that day; what is answered here comes back as `hold.result` later."""
    parcels = hold.payload["parcels"]

    def found_room(day: Day) -> dict[str, int]:
        if free(day.vans, day.reserved + day.booked) < parcels:
            raise Refused(f"the vans of {hold.payload['day']} are full")
        return {"reserved": day.reserved + parcels}

    change(session, hold.payload["day"], found_room)
    return {"parcels": parcels}


@shipping.on_confirm
def book(hold: Hold[Parcels], session: Session) -> None:
    """The room that was reserved is taken for good."""
    parcels = hold.result["parcels"]
    change(
        session, hold.payload["day"], lambda day: {"reserved": day.reserved - parcels, "booked": day.booked + parcels}
    )


@shipping.on_cancel
def give_back(hold: Hold[Parcels], session: Session) -> None:
    """The room that was reserved is free again."""
    parcels = hold.result["parcels"]
    change(session, hold.payload["day"], lambda day: {"reserved": day.reserved - parcels})


def free(vans: int, taken: int) -> int:
    """How many more parcels fit; a function, because real vans have weights, sizes and routes."""
    return vans * PARCELS_PER_VAN - taken


def change(session: Session, name: str, decide: Callable[[Day], dict[str, int]]) -> None:
    """Read the day, write what `decide` returns, and start over if the row has changed meanwhile."""
    for _ in range(ATTEMPTS_MAX):
        day = session.get(Day, name, populate_existing=True)
        if day is None:
            raise Refused(f"no vans on {name}")
        write = update(Day).where(Day.name == name, Day.version == day.version)
        result = session.execute(write.values(version=day.version + 1, **decide(day)))
        assert isinstance(result, CursorResult)
        if result.rowcount == 1:
            return
    raise TimeoutError(f"the row changed {ATTEMPTS_MAX} times")  # not a refusal: the coordinator tries again


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Make the tables, plan the vans of a new database, and look after holds."""
    os.makedirs(DATA_DIR, exist_ok=True)
    Base.metadata.create_all(engine)
    with Session(engine) as session, session.begin():
        for name, vans in VANS_AT_FIRST.items():
            if session.get(Day, name) is None:
                session.add(Day(name=name, vans=vans))
    async with shipping.lifespan(app):
        yield
    engine.dispose()


app = FastAPI(title="Shipping", lifespan=lifespan)
app.include_router(shipping.router, prefix="/tcc")


@app.get("/healthz")
def healthz() -> dict[str, str]:
    """The process is alive."""
    return {"status": "alive"}


@app.get("/balances")
def balances() -> dict[str, Any]:
    """Each day's room, what of it is reserved and booked, and the holds that are open."""
    branches = shipping.table.c
    open_holds = select(branches.transaction_id, branches.state, branches.expires_at)
    days = select(Day.name, (Day.vans * PARCELS_PER_VAN).label("room"), Day.reserved, Day.booked).order_by(Day.name)
    with Session(engine) as session:
        holds = session.execute(open_holds.where(branches.finished_at.is_(None))).mappings()
        return {"days": [dict(day) for day in session.execute(days).mappings()], "holds": [dict(row) for row in holds]}
