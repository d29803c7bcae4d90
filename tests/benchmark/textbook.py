"""The textbook coordinator: what people write by hand when they need TCC and have FastAPI.

It does what the usual tutorials show: an `async def` endpoint, SQLModel tables, an AsyncSession per request from a
dependency, a commit and a refresh after each change, and one `httpx.AsyncClient()` for the application, as it comes.
The two calls of a phase are gathered. It keeps the history of calls. It has no recovery, no retry, no idempotency
and no deadline, which would only make it slower.

    TEXTBOOK_DATABASE_URL=postgresql+psycopg://… TEXTBOOK_PARTICIPANTS='{…}' uvicorn tests.benchmark.textbook:app
"""

import asyncio
import json
import os
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

import httpx
from fastapi import Depends, FastAPI, HTTPException, Request
from pydantic import BaseModel
from sqlalchemy import JSON, Column
from sqlalchemy.ext.asyncio import create_async_engine
from sqlmodel import Field, SQLModel
from sqlmodel.ext.asyncio.session import AsyncSession

engine = create_async_engine(os.environ["TEXTBOOK_DATABASE_URL"])
participants: dict[str, str] = json.loads(os.environ["TEXTBOOK_PARTICIPANTS"])


class Transaction(SQLModel, table=True):
    __tablename__ = "transactions"

    id: str = Field(default_factory=lambda: str(uuid.uuid4()), primary_key=True)
    name: str
    reference: str
    phase: str = "trying"


class Branch(SQLModel, table=True):
    __tablename__ = "branches"

    id: int | None = Field(default=None, primary_key=True)
    transaction_id: str = Field(foreign_key="transactions.id", index=True)
    participant: str
    payload: dict[str, Any] = Field(sa_column=Column(JSON))
    phase: str = "trying"


class Call(SQLModel, table=True):
    __tablename__ = "calls"

    id: int | None = Field(default=None, primary_key=True)
    transaction_id: str = Field(foreign_key="transactions.id", index=True)
    branch: str
    operation: str
    started_at: float
    duration_ms: float
    http_status: int
    response: str


class BranchRequest(BaseModel):
    participant: str
    payload: dict[str, Any] = {}


class BeginRequest(BaseModel):
    name: str
    reference: str
    timeout_s: float = 30
    branches: list[BranchRequest]


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    async with engine.begin() as connection:
        await connection.run_sync(SQLModel.metadata.create_all)
    async with httpx.AsyncClient() as client:
        app.state.client = client
        yield
    await engine.dispose()


app = FastAPI(lifespan=lifespan)


async def get_session() -> AsyncIterator[AsyncSession]:
    async with AsyncSession(engine, expire_on_commit=False) as session:
        yield session


@app.post("/v1/transactions", status_code=201)
async def begin(
    wanted: BeginRequest, request: Request, session: Annotated[AsyncSession, Depends(get_session)]
) -> dict[str, Any]:
    """Try all branches, then confirm all, or cancel all."""
    client: httpx.AsyncClient = request.app.state.client
    transaction = Transaction(name=wanted.name, reference=wanted.reference)
    session.add(transaction)
    await session.commit()
    await session.refresh(transaction)
    branches = []
    for each in wanted.branches:
        branch = Branch(transaction_id=transaction.id, participant=each.participant, payload=each.payload)
        session.add(branch)
        await session.commit()
        await session.refresh(branch)
        branches.append(branch)
    held = await call_all(session, client, branches, "try", "held")
    transaction.phase = "confirming" if held else "cancelling"
    session.add(transaction)
    await session.commit()
    await session.refresh(transaction)
    if held:
        done = await call_all(session, client, branches, "confirm", "confirmed")
    else:
        done = await call_all(session, client, branches, "cancel", "cancelled")
    if done:
        transaction.phase = "confirmed" if held else "cancelled"
        session.add(transaction)
        await session.commit()
        await session.refresh(transaction)
    if transaction.phase != "confirmed":
        raise HTTPException(409, transaction.phase)
    return {"id": transaction.id, "outcome": transaction.phase}


async def call_all(
    session: AsyncSession, client: httpx.AsyncClient, branches: list[Branch], operation: str, phase: str
) -> bool:
    """Call all participants at once, then write down what each answered."""
    messages = [
        {"transaction_id": each.transaction_id, "branch": each.participant, "payload": each.payload}
        for each in branches
    ]
    urls = [f"{participants[each.participant]}/{operation}" for each in branches]
    started_at = time.time()
    answers = await asyncio.gather(
        *(client.post(url, json=message) for url, message in zip(urls, messages, strict=True))
    )
    duration_ms = (time.time() - started_at) * 1000
    for branch, answer in zip(branches, answers, strict=True):
        call = Call(
            transaction_id=branch.transaction_id,
            branch=branch.participant,
            operation=operation,
            started_at=started_at,
            duration_ms=duration_ms,
            http_status=answer.status_code,
            response=answer.text,
        )
        if answer.is_success:
            branch.phase = phase
        session.add(branch)
        session.add(call)
        await session.commit()
        await session.refresh(branch)
    return all(answer.is_success for answer in answers)
