"""A depot whose goods are reserved by a saga step, and put back by its compensation. The smallest example of one.

`def` handlers on an Engine.
"""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel, PositiveInt
from sqlalchemy import CursorResult, create_engine, select, update
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from holdfast import Refused, SagaStep, Step

DATA_DIR = os.environ.get("DATA_DIR", ".run")
DATABASE_URL = os.environ.get("DATABASE_URL", f"sqlite:///{DATA_DIR}/depot.db")
HOLDFAST_URL = os.environ.get("HOLDFAST_URL", "http://127.0.0.1:8000")
HOLDFAST_API_KEY = os.environ.get("HOLDFAST_API_KEY")


class Base(DeclarativeBase):
    """This service's tables."""


class Goods(Base):
    """What lies in the depot."""

    __tablename__ = "goods"

    sku: Mapped[str] = mapped_column(primary_key=True)
    on_hand: Mapped[int]


class Wanted(BaseModel):
    """The payload: what to take."""

    sku: str
    quantity: PositiveInt


engine = create_engine(DATABASE_URL)
depot = SagaStep("depot", engine, coordinator_url=HOLDFAST_URL, api_key=HOLDFAST_API_KEY)


@depot.on_action
def take(step: Step[Wanted], session: Session) -> dict[str, int]:
    """Take the goods, or refuse."""
    wanted = step.payload
    enough = update(Goods).where(Goods.sku == wanted.sku, Goods.on_hand >= wanted.quantity)
    taken = session.execute(enough.values(on_hand=Goods.on_hand - wanted.quantity))
    assert isinstance(taken, CursorResult)
    if taken.rowcount == 0:
        raise Refused("sold out")
    return {"taken": wanted.quantity}


@depot.on_compensation
def put_back(step: Step[Wanted], session: Session) -> None:
    """Runs only if the goods were taken: the SDK knows, and acknowledges by itself what never happened."""
    wanted = step.payload
    session.execute(update(Goods).where(Goods.sku == wanted.sku).values(on_hand=Goods.on_hand + wanted.quantity))


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Make the tables, and fill a new depot."""
    os.makedirs(DATA_DIR, exist_ok=True)
    Base.metadata.create_all(engine)
    with Session(engine) as session, session.begin():
        if session.get(Goods, "A-1") is None:
            session.add(Goods(sku="A-1", on_hand=100))
    async with depot.lifespan(app):
        yield
    engine.dispose()


app = FastAPI(title="Depot", lifespan=lifespan)
app.include_router(depot.router, prefix="/depot")


@app.get("/healthz")
async def healthz() -> dict[str, str]:
    """The process is alive."""
    return {"status": "alive"}


@app.get("/balances")
def balances() -> dict[str, Any]:
    """What lies in the depot."""
    with Session(engine) as session:
        return {goods.sku: goods.on_hand for goods in session.scalars(select(Goods))}
