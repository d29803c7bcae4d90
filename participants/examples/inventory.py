"""Inventory: a semantic lock.

The column `reserved` counts the pieces that are held. Nobody waits for a hold: an order takes its pieces from what is
on hand and not reserved, in one conditional UPDATE, so that two orders can never hold the same piece. A database lock
couldn't do this, because a hold lasts for seconds or days, across many requests and restarts.

`def` handlers on an ordinary Engine; the SDK's table joins this service's own metadata.
"""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel, PositiveInt
from sqlalchemy import CursorResult, create_engine, select, update
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from holdfast import Hold, Participant, Refused

DATA_DIR = os.environ.get("DATA_DIR", ".run")
DATABASE_URL = os.environ.get("DATABASE_URL", f"sqlite:///{DATA_DIR}/inventory.db")
HOLDFAST_URL = os.environ.get("HOLDFAST_URL", "http://127.0.0.1:8000")
HOLDFAST_API_KEY = os.environ.get("HOLDFAST_API_KEY")
HOLD_TTL_MAX_S = float(os.environ.get("HOLD_TTL_MAX_S", "0")) or None  # maximum hold time, in seconds
HOLD_MAX_S = float(os.environ.get("HOLD_MAX_S", "0")) or None  # release without asking after this
REAP_INTERVAL_S = float(os.environ.get("REAP_INTERVAL_S", "5"))
STOCK_AT_FIRST = {"A-1": 100, "B-2": 3}


class Base(DeclarativeBase):
    """This service's tables."""


class Stock(Base):
    """One article. `on_hand` is what lies on the shelf; of that, `reserved` is held."""

    __tablename__ = "stock"

    sku: Mapped[str] = mapped_column(primary_key=True)
    on_hand: Mapped[int]
    reserved: Mapped[int] = mapped_column(default=0)
    sold: Mapped[int] = mapped_column(default=0)


class Wanted(BaseModel):
    """The payload: a number of pieces of an article."""

    sku: str
    quantity: PositiveInt


engine = create_engine(DATABASE_URL)
inventory = Participant(
    "inventory",
    engine,
    coordinator_url=HOLDFAST_URL,
    api_key=HOLDFAST_API_KEY,
    metadata=Base.metadata,
    hold_ttl_max_s=HOLD_TTL_MAX_S,
    hold_max_s=HOLD_MAX_S,
    reap_interval_s=REAP_INTERVAL_S,
)


@inventory.on_try
def reserve(hold: Hold[Wanted], session: Session) -> None:
    """Take it from what nobody holds, or refuse."""
    sku, quantity = hold.payload.sku, hold.payload.quantity
    free = Stock.on_hand - Stock.reserved
    take = update(Stock).where(Stock.sku == sku, free >= quantity).values(reserved=Stock.reserved + quantity)
    if not _changed(session, take):
        raise Refused(f"fewer than {quantity} of {sku} are free")


@inventory.on_confirm
def sell(hold: Hold[Wanted], session: Session) -> None:
    """What was reserved leaves the shelf."""
    quantity = hold.payload.quantity
    leave = {"reserved": Stock.reserved - quantity, "on_hand": Stock.on_hand - quantity, "sold": Stock.sold + quantity}
    assert _changed(session, update(Stock).where(Stock.sku == hold.payload.sku).values(leave))


@inventory.on_cancel
def put_back(hold: Hold[Wanted], session: Session) -> None:
    """What was reserved is free again."""
    free = update(Stock).where(Stock.sku == hold.payload.sku).values(reserved=Stock.reserved - hold.payload.quantity)
    assert _changed(session, free)


def _changed(session: Session, statement: Any) -> bool:
    result = session.execute(statement)
    assert isinstance(result, CursorResult)
    return result.rowcount == 1


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Make the tables, fill the shelves of a new database, and look after holds."""
    os.makedirs(DATA_DIR, exist_ok=True)
    Base.metadata.create_all(engine)
    with Session(engine) as session, session.begin():
        for sku, on_hand in STOCK_AT_FIRST.items():
            if session.get(Stock, sku) is None:
                session.add(Stock(sku=sku, on_hand=on_hand))
    async with inventory.lifespan(app):
        yield
    engine.dispose()


app = FastAPI(title="Inventory", lifespan=lifespan)
app.include_router(inventory.router, prefix="/tcc")


@app.get("/healthz")
def healthz() -> dict[str, str]:
    """The process is alive."""
    return {"status": "alive"}


@app.get("/balances")
def balances() -> dict[str, Any]:
    """What is on hand, reserved and sold, and the holds that are open."""
    branches = inventory.table.c
    open_holds = select(branches.transaction_id, branches.state, branches.expires_at).where(
        branches.finished_at.is_(None)
    )
    with Session(engine) as session:
        stock = session.scalars(select(Stock).order_by(Stock.sku)).all()
        return {
            "stock": [
                {"sku": row.sku, "on_hand": row.on_hand, "reserved": row.reserved, "sold": row.sold} for row in stock
            ],
            "holds": [dict(row) for row in session.execute(open_holds).mappings()],
        }
