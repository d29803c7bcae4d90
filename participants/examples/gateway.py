"""A card gateway: a stand-in for a company whose database is not yours.

It knows nothing of TCC. It does what real ones do: authorise, capture and void, each safe to repeat because the
caller sends an idempotency key, which belongs to that one request, and it keeps its own ledger. An authorisation
goes by the reference that the caller gives it. Payment calls it; compare the two ledgers.
"""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

from fastapi import FastAPI, Header, HTTPException
from pydantic import BaseModel, Field, PositiveInt
from sqlalchemy import CursorResult, create_engine, select, update
from sqlalchemy.dialects.sqlite import insert
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

DATA_DIR = os.environ.get("DATA_DIR", ".run")
DATABASE_URL = os.environ.get("DATABASE_URL", f"sqlite:///{DATA_DIR}/gateway.db")
CARDS_AT_FIRST = {"ada": 1_000_00, "bob": 10_00}

Key = Annotated[str, Header(alias="Idempotency-Key", min_length=1, max_length=200)]


class Base(DeclarativeBase):
    """The gateway's tables."""


class Card(Base):
    """A customer's card. What is authorised is no longer available and not yet captured."""

    __tablename__ = "cards"

    customer: Mapped[str] = mapped_column(primary_key=True)
    available: Mapped[int]
    authorised: Mapped[int] = mapped_column(default=0)
    captured: Mapped[int] = mapped_column(default=0)


class Authorisation(Base):
    """The state of one reference of a caller: authorised, captured, voided or declined."""

    __tablename__ = "authorisations"

    reference: Mapped[str] = mapped_column(primary_key=True)
    customer: Mapped[str]
    amount: Mapped[int]
    state: Mapped[str]


class Request(Base):
    """Which request an idempotency key belongs to."""

    __tablename__ = "requests"

    key: Mapped[str] = mapped_column(primary_key=True)
    request: Mapped[str]


class Authorised(BaseModel):
    """Which authorisation to capture or void."""

    reference: str = Field(min_length=1, max_length=200)


class Wanted(Authorised):
    """An amount to authorise on a customer's card."""

    customer: str
    amount_cents: PositiveInt


engine = create_engine(DATABASE_URL)


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Make the tables, and issue the cards of a new database."""
    os.makedirs(DATA_DIR, exist_ok=True)
    Base.metadata.create_all(engine)
    with Session(engine) as session, session.begin():
        for customer, available in CARDS_AT_FIRST.items():
            if session.get(Card, customer) is None:
                session.add(Card(customer=customer, available=available))
    yield
    engine.dispose()


app = FastAPI(title="Card gateway", lifespan=lifespan)


@app.post("/authorise", status_code=201)
def authorise(wanted: Wanted, key: Key) -> dict[str, str]:
    """Set the amount aside; 402 when the card does not cover it. The same key: the same answer."""
    with Session(engine) as session, session.begin():
        _bind(session, key, "authorise", wanted)
        new = {
            "reference": wanted.reference,
            "customer": wanted.customer,
            "amount": wanted.amount_cents,
            "state": "declined",
        }
        is_new = _changed(session, insert(Authorisation).values(new).on_conflict_do_nothing())
        held = session.get_one(Authorisation, wanted.reference)
        if (held.customer, held.amount) != (wanted.customer, wanted.amount_cents):
            raise HTTPException(422, "this reference was used for something else")
        if is_new and _move(session, held, available=-held.amount, authorised=held.amount):
            held.state = "authorised"
        state = held.state
    if state == "declined":
        raise HTTPException(402, "insufficient funds")
    if state == "voided":
        raise HTTPException(409, "this authorisation was voided")
    return {"reference": wanted.reference, "state": state}


@app.post("/capture")
def capture(wanted: Authorised, key: Key) -> dict[str, str]:
    """Take what was authorised; 409 when there is nothing to take."""
    with Session(engine) as session, session.begin():
        _bind(session, key, "capture", wanted)
        if _turn(session, wanted.reference, "captured"):
            held = session.get_one(Authorisation, wanted.reference)
            assert _move(session, held, authorised=-held.amount, captured=held.amount)
        found = session.get(Authorisation, wanted.reference)
        if found is None or found.state != "captured":
            raise HTTPException(409, "nothing is authorised under this reference")
    return {"reference": wanted.reference, "state": "captured"}


@app.post("/void")
def void(wanted: Authorised, key: Key) -> dict[str, str]:
    """Give back what was authorised; harmless when there is nothing to give back, 409 when it was captured."""
    with Session(engine) as session, session.begin():
        _bind(session, key, "void", wanted)
        if _turn(session, wanted.reference, "voided"):
            held = session.get_one(Authorisation, wanted.reference)
            assert _move(session, held, available=held.amount, authorised=-held.amount)
        found = session.get(Authorisation, wanted.reference)
        state = "nothing" if found is None else found.state
    if state == "captured":
        raise HTTPException(409, "the amount has been captured")
    return {"reference": wanted.reference, "state": state}


@app.get("/healthz")
def healthz() -> dict[str, str]:
    return {"status": "alive"}


@app.get("/balances")
def balances() -> dict[str, Any]:
    """What is available, authorised and captured on every card, in cents."""
    cards = select(Card.customer, Card.available, Card.authorised, Card.captured).order_by(Card.customer)
    with Session(engine) as session:
        return {"cards": [dict(card) for card in session.execute(cards).mappings()]}


def _bind(session: Session, key: str, path: str, wanted: Authorised) -> None:
    """Bind the key to this request: it can't be used for another one."""
    request = f"{path} {wanted.model_dump_json()}"
    session.execute(insert(Request).values(key=key, request=request).on_conflict_do_nothing())
    if session.get_one(Request, key).request != request:
        raise HTTPException(422, "this key was used for something else")


def _turn(session: Session, reference: str, state: str) -> bool:
    still = update(Authorisation).where(Authorisation.reference == reference, Authorisation.state == "authorised")
    return _changed(session, still.values(state=state))


def _move(session: Session, held: Authorisation, **amounts: int) -> bool:
    """Move money between the columns of a card, unless there is too little of it."""
    card = update(Card).where(Card.customer == held.customer, Card.available + amounts.get("available", 0) >= 0)
    return _changed(session, card.values({name: getattr(Card, name) + cents for name, cents in amounts.items()}))


def _changed(session: Session, statement: Any) -> bool:
    result = session.execute(statement)
    assert isinstance(result, CursorResult)
    return result.rowcount == 1
