"""A participant with the SDK, in the version that PYTHONPATH leads to. Requests move its clock and call its reaper."""

import os
import time
from typing import Any

import uvicorn
from fastapi import FastAPI
from sqlalchemy import create_engine, text
from sqlalchemy.orm import Session

from holdfast import Hold, Participant

passed_s = [0.0]
engine = create_engine(os.environ["PARTICIPANT_DATABASE_URL"])
seats = Participant(
    "seats",
    engine,
    coordinator_url=os.environ["PARTICIPANT_COORDINATOR_URL"],
    reap_interval_s=3600.0,
    clock=lambda: time.time() + passed_s[0],
)


@seats.on_try
def reserve(hold: Hold[Any], session: Session) -> None:
    """Every seat is free."""


app = FastAPI()
app.include_router(seats.router, prefix="/tcc")


@app.get("/states")
def states() -> dict[str, str]:
    """What becomes of each hold, by transaction and branch."""
    with engine.connect() as connection:
        rows = connection.execute(text("SELECT transaction_id, branch, state FROM holdfast_branches"))
        return {f"{transaction_id} {branch}": state for transaction_id, branch, state in rows}


@app.post("/reap")
async def reap(after_s: float) -> int:
    """One round of the reaper, so many seconds later."""
    passed_s[0] += after_s
    return await seats.reap()


if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=int(os.environ["PARTICIPANT_PORT"]), log_level="warning")
