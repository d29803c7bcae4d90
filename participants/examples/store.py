"""A store that sells by a saga: an order that can be compensated, a charge that can't, and a letter that just happens.

Three participants in one service, on one database: a `SagaStep`, a `Pivot` and a `Retryable`. None of them commits, and
each handler takes effect exactly once, because its row and its changes are one local transaction.

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

from holdfast import Pivot, Refused, Retryable, SagaStep, Step

DATA_DIR = os.environ.get("DATA_DIR", ".run")
DATABASE_URL = os.environ.get("DATABASE_URL", f"sqlite:///{DATA_DIR}/store.db")
HOLDFAST_URL = os.environ.get("HOLDFAST_URL", "http://127.0.0.1:8000")
HOLDFAST_API_KEY = os.environ.get("HOLDFAST_API_KEY")
MONEY_AT_FIRST = {"ada": 500_00, "bob": 10_00}


class Base(DeclarativeBase):
    """This service's tables."""


class Order(Base):
    """An order, by the transaction that it belongs to: `open`, then `cancelled` or `placed`."""

    __tablename__ = "orders"

    transaction_id: Mapped[str] = mapped_column(primary_key=True)
    sku: Mapped[str]
    state: Mapped[str]


class Wallet(Base):
    """What a customer has, and has paid, in cents."""

    __tablename__ = "wallets"

    customer: Mapped[str] = mapped_column(primary_key=True)
    cents: Mapped[int]
    paid: Mapped[int] = mapped_column(default=0)


class Letter(Base):
    """A letter that was sent."""

    __tablename__ = "letters"

    transaction_id: Mapped[str] = mapped_column(primary_key=True)
    text: Mapped[str]


class Wanted(BaseModel):
    """The payload of an order."""

    sku: str


class Charge(BaseModel):
    """The payload of a charge."""

    customer: str
    amount_cents: PositiveInt


class Text(BaseModel):
    """The payload of a letter."""

    text: str


engine = create_engine(DATABASE_URL)
orders = SagaStep("orders", engine, coordinator_url=HOLDFAST_URL, api_key=HOLDFAST_API_KEY)
bank = Pivot("bank", engine, coordinator_url=HOLDFAST_URL, api_key=HOLDFAST_API_KEY)
letters = Retryable("letters", engine, coordinator_url=HOLDFAST_URL, api_key=HOLDFAST_API_KEY)


@orders.on_action
def create_order(step: Step[Wanted], session: Session) -> dict[str, str]:
    """Everybody can see the order from now on; its state says that it may still be taken back."""
    session.add(Order(transaction_id=step.transaction_id, sku=step.payload.sku, state="open"))
    return {"order": step.transaction_id}


@orders.on_compensation
def cancel_order(step: Step[Wanted], session: Session) -> None:
    """Found by the transaction, never by the result, which is lost with an answer that nobody heard."""
    session.execute(update(Order).where(Order.transaction_id == step.transaction_id).values(state="cancelled"))


@bank.on_action
def charge(step: Step[Charge], session: Session) -> dict[str, int]:
    """Take the money. Its success decides; `Refused` is recorded, and decides as well."""
    amount, wallet = step.payload.amount_cents, Wallet.customer == step.payload.customer
    take = update(Wallet).where(wallet, Wallet.cents >= amount)
    taken = session.execute(take.values(cents=Wallet.cents - amount, paid=Wallet.paid + amount))
    assert isinstance(taken, CursorResult)
    if taken.rowcount == 0:
        raise Refused("insufficient funds")
    return {"charged_cents": amount}


@letters.on_action
def send(step: Step[Text], session: Session) -> None:
    """Happens in the end, and once. `results` has what the bank did, if the branch comes after it."""
    charged = step.results.get("charge") or {}
    paid = f" ({charged['charged_cents']} cents)" if charged else ""
    session.add(Letter(transaction_id=step.transaction_id, text=step.payload.text + paid))


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Make the tables, fill the wallets of a new database, and look after the rows of finished steps."""
    os.makedirs(DATA_DIR, exist_ok=True)
    Base.metadata.create_all(engine)
    with Session(engine) as session, session.begin():
        for customer, cents in MONEY_AT_FIRST.items():
            if session.get(Wallet, customer) is None:
                session.add(Wallet(customer=customer, cents=cents))
    async with orders.lifespan(app), bank.lifespan(app), letters.lifespan(app):
        yield
    engine.dispose()


app = FastAPI(title="Store", lifespan=lifespan)
app.include_router(orders.router, prefix="/orders")
app.include_router(bank.router, prefix="/bank")
app.include_router(letters.router, prefix="/letters")


@app.get("/healthz")
async def healthz() -> dict[str, str]:
    """The process is alive."""
    return {"status": "alive"}


@app.get("/balances")
def balances() -> dict[str, Any]:
    """What each customer has and has paid, and the state of each transaction's order, and its letter."""
    with Session(engine) as session:
        return {
            "wallets": {w.customer: {"cents": w.cents, "paid": w.paid} for w in session.scalars(select(Wallet))},
            "orders": {o.transaction_id: o.state for o in session.scalars(select(Order))},
            "letters": {letter.transaction_id: letter.text for letter in session.scalars(select(Letter))},
        }
