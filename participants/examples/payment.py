"""Payment: a credit hold, and a gateway outside the database in the two-step form.

The customer's credit is a column of this database, changed like inventory's stock. The card isn't: no local
transaction covers it. With `two_step=True` the SDK records durably that a handler is about to run, so that a cancel
after a crash knows that something may have happened out there, and voids it by its reference. Every handler calls the
gateway first, then writes: no connection is held while it waits.

`async def` handlers on an AsyncEngine.
"""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
from fastapi import FastAPI
from pydantic import BaseModel, PositiveInt
from sqlalchemy import CursorResult, select, update
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from holdfast import Hold, Participant, Refused

DATA_DIR = os.environ.get("DATA_DIR", ".run")
DATABASE_URL = os.environ.get("DATABASE_URL", f"sqlite+aiosqlite:///{DATA_DIR}/payment.db")
HOLDFAST_URL = os.environ.get("HOLDFAST_URL", "http://127.0.0.1:8000")
HOLDFAST_API_KEY = os.environ.get("HOLDFAST_API_KEY")
GATEWAY_URL = os.environ.get("GATEWAY_URL", "http://127.0.0.1:8005")
HOLD_TTL_MAX_S = float(os.environ.get("HOLD_TTL_MAX_S", "0")) or None  # maximum hold time, in seconds
HOLD_MAX_S = float(os.environ.get("HOLD_MAX_S", "0")) or None  # release without asking after this
REAP_INTERVAL_S = float(os.environ.get("REAP_INTERVAL_S", "5"))
CREDIT_AT_FIRST = {"ada": 500_00, "bob": 500_00}


class Base(DeclarativeBase):
    """This service's tables."""


class Account(Base):
    """What we let a customer spend, in cents; of that, `held` is promised and `charged` is gone."""

    __tablename__ = "accounts"

    customer: Mapped[str] = mapped_column(primary_key=True)
    credit: Mapped[int]
    held: Mapped[int] = mapped_column(default=0)
    charged: Mapped[int] = mapped_column(default=0)


class Charge(BaseModel):
    """The payload: an amount for a customer to pay."""

    customer: str
    amount_cents: PositiveInt


engine = create_async_engine(DATABASE_URL)
gateway = httpx.AsyncClient(base_url=GATEWAY_URL, timeout=5.0)  # shorter than handler_timeout_s
payment = Participant(
    "payment",
    engine,
    coordinator_url=HOLDFAST_URL,
    api_key=HOLDFAST_API_KEY,
    metadata=Base.metadata,
    two_step=True,
    hold_ttl_max_s=HOLD_TTL_MAX_S,
    hold_max_s=HOLD_MAX_S,
    reap_interval_s=REAP_INTERVAL_S,
)


@payment.on_try
async def authorise(hold: Hold[Charge], session: AsyncSession) -> dict[str, str]:
    """Authorise on the card, then hold the credit. A refusal leaves nothing outside: see the void."""
    amount = hold.payload.amount_cents
    answer = await _gateway(hold, "authorise", **hold.payload.model_dump())
    if answer.status_code in (402, 409):
        raise Refused(answer.json()["detail"])
    answer.raise_for_status()
    left = Account.credit - Account.held - Account.charged
    keep = update(Account).where(Account.customer == hold.payload.customer, left >= amount)
    if not await _changed(session, keep.values(held=Account.held + amount)):
        (await _gateway(hold, "void")).raise_for_status()
        raise Refused("over the credit limit")
    return {"authorisation": hold.idempotency_key}


@payment.on_confirm
async def capture(hold: Hold[Charge], session: AsyncSession) -> None:
    """Take the money, then say so."""
    (await _gateway(hold, "capture")).raise_for_status()
    amount = hold.payload.amount_cents
    account = update(Account).where(Account.customer == hold.payload.customer)
    assert await _changed(session, account.values(held=Account.held - amount, charged=Account.charged + amount))


@payment.on_cancel
async def void(hold: Hold[Charge], session: AsyncSession) -> None:
    """Void by our reference, whether there is something or not; what Try wrote here is there only if `held`."""
    (await _gateway(hold, "void")).raise_for_status()
    if hold.held:
        account = update(Account).where(Account.customer == hold.payload.customer)
        assert await _changed(session, account.values(held=Account.held - hold.payload.amount_cents))


async def _gateway(hold: Hold[Charge], request: str, **details: Any) -> httpx.Response:
    """One request about this hold. A gateway binds a key to one request, so each has its own."""
    body = {"reference": hold.idempotency_key, **details}
    return await gateway.post(f"/{request}", json=body, headers={"Idempotency-Key": hold.key_for(request)})


async def _changed(session: AsyncSession, statement: Any) -> bool:
    result = await session.execute(statement)
    assert isinstance(result, CursorResult)
    return result.rowcount == 1


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Make the tables, open the accounts of a new database, and look after holds."""
    os.makedirs(DATA_DIR, exist_ok=True)
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    async with AsyncSession(engine) as session, session.begin():
        for customer, credit in CREDIT_AT_FIRST.items():
            if await session.get(Account, customer) is None:
                session.add(Account(customer=customer, credit=credit))
    async with gateway, payment.lifespan(app):
        yield
    await engine.dispose()


app = FastAPI(title="Payment", lifespan=lifespan)
app.include_router(payment.router, prefix="/tcc")


@app.get("/healthz")
async def healthz() -> dict[str, str]:
    """The process is alive."""
    return {"status": "alive"}


@app.get("/balances")
async def balances() -> dict[str, Any]:
    """Every account's credit, what of it is held and charged, in cents, and the holds that are open."""
    branches = payment.table.c
    open_holds = select(branches.transaction_id, branches.state, branches.expires_at)
    accounts = select(Account.customer, Account.credit, Account.held, Account.charged).order_by(Account.customer)
    async with AsyncSession(engine) as session:
        found = (await session.execute(accounts)).mappings().all()
        holds = (await session.execute(open_holds.where(branches.finished_at.is_(None)))).mappings().all()
    return {"accounts": [dict(account) for account in found], "holds": [dict(row) for row in holds]}
