"""Order: the initiator.

An order needs goods, money and a van, or none of them: one TCC transaction with three branches. The order is stored
before the coordinator hears of it, and the idempotency key is made from its id: whoever crashes or repeats, there is
one order and one transaction. The customer is answered at the decision, because a decided confirm never becomes a
cancel: 201 booked, 409 refused, 202 open (not decided yet), 503 coordinator out of reach: post the same order_id again.
"""

import os
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, HTTPException, Response
from pydantic import BaseModel, Field, PositiveInt
from sqlalchemy import JSON
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from holdfast import (
    Branch,
    Client,
    CoordinatorUnreachable,
    Transaction,
    TransactionCancelled,
    TransactionMixed,
    TransactionUndecided,
)

DATA_DIR = os.environ.get("DATA_DIR", ".run")
DATABASE_URL = os.environ.get("DATABASE_URL", f"sqlite+aiosqlite:///{DATA_DIR}/order.db")
HOLDFAST_URL = os.environ.get("HOLDFAST_URL", "http://127.0.0.1:8000")
TIMEOUT_S = float(os.environ.get("DECISION_TIMEOUT_S", "30"))  # to the decision
PRICES_CENTS = {"A-1": 25_00, "B-2": 400_00}
STATUSES = {"confirm": ("booked", 201), "undecided": ("open", 202), "cancel": ("refused", 409)}


class Base(DeclarativeBase): ...


class Order(Base):
    """One order; `status` is open, booked or refused."""

    __tablename__ = "orders"

    id: Mapped[str] = mapped_column(primary_key=True)
    wanted: Mapped[dict[str, Any]] = mapped_column(JSON)
    status: Mapped[str]
    transaction_id: Mapped[str | None]
    reason: Mapped[str | None]


class NewOrder(BaseModel):
    """What a customer asks for. Give `order_id` to be able to ask again safely."""

    order_id: str = Field(default_factory=lambda: str(uuid.uuid4()), pattern=r"^[A-Za-z0-9-]{1,40}$")
    customer: str
    sku: str
    quantity: PositiveInt
    day: str


engine = create_async_engine(DATABASE_URL)
sessions = async_sessionmaker(engine, expire_on_commit=False)
tcc = Client(HOLDFAST_URL, api_key=os.environ.get("HOLDFAST_API_KEY"))


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Make the table; close what was opened."""
    os.makedirs(DATA_DIR, exist_ok=True)
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    async with tcc:
        yield
    await engine.dispose()


app = FastAPI(title="Order", lifespan=lifespan)


@app.post("/orders", status_code=201)
async def place(new: NewOrder, response: Response) -> dict[str, Any]:
    """Place an order. Posting the same `order_id` again reports its state."""
    if new.sku not in PRICES_CENTS:
        raise HTTPException(422, f"there is no article {new.sku}")
    order = await store(new)
    try:
        transaction = await begin(order)
    except (TransactionCancelled, TransactionMixed, TransactionUndecided) as not_confirmed:
        transaction = not_confirmed.transaction
    except CoordinatorUnreachable:
        raise HTTPException(503, f"order {order.id} is open; post it again", {"Retry-After": "5"}) from None
    response.status_code = status_of(transaction)[1]
    return shown(await settle(order, transaction))


async def store(new: NewOrder) -> Order:
    """The order as it is stored from now on; 409 when its id belongs to another one."""
    wanted = {**new.model_dump(exclude={"order_id"}), "amount_cents": PRICES_CENTS[new.sku] * new.quantity}
    try:
        async with sessions.begin() as session:
            session.add(Order(id=new.order_id, wanted=wanted, status="open"))
    except IntegrityError:
        pass  # it was stored before
    async with sessions() as session:
        order = await session.get_one(Order, new.order_id)
    if order.wanted != wanted:
        raise HTTPException(409, f"order {new.order_id} is another one")
    return order


async def begin(order: Order) -> Transaction:
    """The same transaction however often it is begun: everything in it comes from the stored order."""
    wanted = order.wanted
    branches = [
        Branch(participant="inventory", payload={"sku": wanted["sku"], "quantity": wanted["quantity"]}),
        Branch(participant="payment", payload={"customer": wanted["customer"], "amount_cents": wanted["amount_cents"]}),
        Branch(participant="shipping", payload={"day": wanted["day"], "parcels": wanted["quantity"]}),
    ]
    key = f"order:{order.id}"
    return await tcc.begin(
        "place-order", branches, reference=order.id, timeout_s=TIMEOUT_S, answer_at="decision", idempotency_key=key
    )


def status_of(transaction: Transaction) -> tuple[str, int]:
    """The order's status, and the answer's. What a person resolved against the decision is a case for people."""
    return ("mixed", 409) if transaction.mixed else STATUSES[transaction.decision]


async def settle(order: Order, transaction: Transaction) -> Order:
    """Store what is known of the transaction."""
    async with sessions.begin() as session:
        order = await session.get_one(Order, order.id)
        order.transaction_id, order.status = transaction.id, status_of(transaction)[0]
        if (reason := transaction.reason) is not None:
            order.reason = reason.detail or reason.code
    return order


def shown(order: Order) -> dict[str, Any]:
    """An order as JSON."""
    progress = {"status": order.status, "transaction_id": order.transaction_id, "reason": order.reason}
    return {"order_id": order.id, **order.wanted, **progress}


@app.get("/orders/{order_id}")
async def get(order_id: str) -> dict[str, Any]:
    async with sessions() as session:
        order = await session.get(Order, order_id)
    if order is None:
        raise HTTPException(404)
    if order.status == "open" and order.transaction_id is not None:
        order = await settle(order, await tcc.get(order.transaction_id))
    return shown(order)


@app.get("/healthz")
async def healthz() -> dict[str, str]:
    return {"status": "alive"}
