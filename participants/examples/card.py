"""Card: a participant without the SDK, three URLs and one table.

It follows the rules that the SDK would enforce: every call can be repeated, a Cancel that overtakes its Try is
remembered, and only a Try that refuses answers 4xx. It doesn't expire holds; that takes a background task that asks the
coordinator what was decided.
"""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from decimal import Decimal

from fastapi import FastAPI, HTTPException
from pydantic import BaseModel, Field
from sqlalchemy import create_engine, update
from sqlalchemy.dialects.sqlite import insert
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

DATA_DIR = os.environ.get("DATA_DIR", ".run")
DATABASE_URL = os.environ.get("DATABASE_URL", f"sqlite:///{DATA_DIR}/card.db")
AMOUNT_MAX = Decimal("500.00")


class Base(DeclarativeBase):
    """This service's tables."""


class Charge(Base):
    """One branch of one transaction; `state` is authorised, captured or voided."""

    __tablename__ = "charges"

    transaction_id: Mapped[str] = mapped_column(primary_key=True)
    branch: Mapped[str] = mapped_column(primary_key=True)
    amount: Mapped[str]
    state: Mapped[str]


class Amount(BaseModel):
    """The payload."""

    amount: Decimal = Field(gt=0, decimal_places=2)


class Call(BaseModel):
    """The part of the coordinator's message that is needed here."""

    transaction_id: str
    branch: str
    payload: Amount


engine = create_engine(DATABASE_URL)


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Make the table."""
    os.makedirs(DATA_DIR, exist_ok=True)
    Base.metadata.create_all(engine)
    yield
    engine.dispose()


app = FastAPI(title="Card", lifespan=lifespan)


@app.post("/auth")
def authorise(call: Call) -> dict[str, str]:
    """Try. A row that is there already is a repeated call, or a Cancel that came first."""
    if call.payload.amount > AMOUNT_MAX:
        raise HTTPException(409, f"over the limit of {AMOUNT_MAX}")
    with Session(engine) as session, session.begin():
        insert_if_absent(session, call, "authorised")
        if state_of(session, call) == "voided":
            raise HTTPException(409, "this charge was cancelled")
    return {"authorisation": f"{call.transaction_id}:{call.branch}"}


@app.post("/capture")
def capture(call: Call) -> dict[str, str]:
    """Confirm."""
    with Session(engine) as session, session.begin():
        move(session, call, "authorised", "captured")
        if state_of(session, call) != "captured":
            raise HTTPException(409, "nothing is authorised")
    return {"state": "captured"}


@app.post("/void")
def void(call: Call) -> dict[str, str]:
    """Cancel. Without a Try before it, it leaves a row that turns a late Try away."""
    with Session(engine) as session, session.begin():
        insert_if_absent(session, call, "voided")
        move(session, call, "authorised", "voided")
        if state_of(session, call) != "voided":
            raise HTTPException(409, "this charge was captured")
    return {"state": "voided"}


def insert_if_absent(session: Session, call: Call, state: str) -> None:
    key = {"transaction_id": call.transaction_id, "branch": call.branch}
    session.execute(insert(Charge).values(**key, amount=str(call.payload.amount), state=state).on_conflict_do_nothing())


def move(session: Session, call: Call, before: str, after: str) -> None:
    """Change the state of a charge that is in the state `before`; leave any other alone."""
    charge = update(Charge).where(Charge.transaction_id == call.transaction_id, Charge.branch == call.branch)
    session.execute(charge.where(Charge.state == before).values(state=after))


def state_of(session: Session, call: Call) -> str | None:
    charge = session.get(Charge, (call.transaction_id, call.branch), populate_existing=True)
    return None if charge is None else charge.state
