"""What a participant does: accounts, and an effect log written in the same local transaction as each change.

Money leaves an account as `held` and arrives as `incoming`, so that a hold is visible and a sum can be reconciled.
Knows nothing of the coordinator, and reads nothing that the SDK writes.
"""

import time
from collections.abc import Callable
from functools import cache
from typing import Any, Final, Literal

from pydantic import BaseModel
from sqlalchemy import (
    BigInteger,
    Column,
    Double,
    Engine,
    Integer,
    MetaData,
    String,
    Table,
    Update,
    bindparam,
    create_engine,
    event,
    insert,
    make_url,
    select,
    update,
)
from sqlalchemy.orm import Session

from holdfast import Hold, Participant, Refused

ACCOUNTS: Final = 64
OPENING_BALANCE: Final = 5_000

metadata: Final = MetaData()
accounts: Final = Table(
    "accounts",
    metadata,
    Column("account", Integer, primary_key=True, autoincrement=False),
    Column("balance", BigInteger, nullable=False),
    Column("held", BigInteger, nullable=False),
    Column("incoming", BigInteger, nullable=False),
)
effects: Final = Table(
    "effects",
    metadata,
    Column("position", Integer, primary_key=True),
    Column("transaction_id", String(64), nullable=False),
    Column("branch", String(64), nullable=False),
    Column("operation", String(16), nullable=False),
    Column("kind", String(16), nullable=False),
    Column("account", Integer, nullable=False),
    Column("amount", BigInteger, nullable=False),
    Column("at", Double, nullable=False),  # monotonic, which all processes of a machine share
)


RESULT_NOTE_CHARS_MAX: Final = 60_000
"""A result must fit into HOLDFAST_RESPONSE_MAX_BYTES."""


class Movement(BaseModel):
    """What one branch is asked to do."""

    kind: Literal["debit", "credit"]
    account: int
    amount: int
    note: str = ""
    """Makes payload and result as long as a test wants them."""

    def moves(self) -> dict[str, Any]:
        """What an effect says about it."""
        return self.model_dump(exclude={"note"})


CHANGES: Final[dict[tuple[str, str], dict[str, int]]] = {
    ("debit", "try"): {"balance": -1, "held": +1},
    ("debit", "confirm"): {"held": -1},
    ("debit", "cancel"): {"held": -1, "balance": +1},
    ("credit", "try"): {"incoming": +1},
    ("credit", "confirm"): {"incoming": -1, "balance": +1},
    ("credit", "cancel"): {"incoming": -1},
}
"""(kind, operation) → what is added to which column, times the amount."""


def open_database(url: str) -> Engine:
    """An engine for a participant's database. Processes are killed here, machines are not: SQLite need not sync.

    A connection that a crash has cut off is noticed by the call that uses it: that call fails, and is repeated.
    """
    engine = create_engine(url, pool_size=connections_of(url), max_overflow=1)
    if _is_sqlite(url):
        event.listen(engine, "connect", _configure_sqlite)
    return engine


def connections_of(url: str) -> int:
    """How many are of use, and how many threads: SQLite has one writer, and those that wait for it ask all the time."""
    return 2 if _is_sqlite(url) else 6


def _is_sqlite(url: str) -> bool:
    return make_url(url).get_backend_name() == "sqlite"


def prepare(engine: Engine) -> None:
    """Create the tables and the opening balances, once, before the participant first starts."""
    metadata.create_all(engine)
    with engine.begin() as connection:
        opening = {"balance": OPENING_BALANCE, "held": 0, "incoming": 0}
        connection.execute(insert(accounts), [{"account": number} | opening for number in range(ACCOUNTS)])


def attach(participant: Participant, *, refuses: Callable[[], bool]) -> None:
    """Give `participant` its handlers; `refuses` says now and then that this Try is turned away."""

    @participant.on_try
    def hold_it(hold: Hold[Movement], session: Session) -> dict[str, str]:
        if refuses():
            raise Refused("not today")
        _change(session, hold, "try")
        return {"hold": hold.idempotency_key, "note": hold.payload.note[:RESULT_NOTE_CHARS_MAX]}

    @participant.on_confirm
    def make_it_final(hold: Hold[Movement], session: Session) -> None:
        _change(session, hold, "confirm")

    @participant.on_cancel
    def give_it_back(hold: Hold[Movement], session: Session) -> None:
        _change(session, hold, "cancel")


def _change(session: Session, hold: Hold[Movement], operation: str) -> None:
    movement = hold.payload
    values = {"number": movement.account, "moved": movement.amount}
    result: Any = session.execute(_moving(movement.kind, operation), values)
    if result.rowcount == 0:
        raise Refused("insufficient funds")
    effect = {"transaction_id": hold.transaction_id, "branch": hold.branch, "operation": operation}
    session.execute(_LOGGING, effect | movement.moves() | {"at": time.monotonic()})


_LOGGING: Final = insert(effects)


@cache
def _moving(kind: str, operation: str) -> Update:
    moved = bindparam("moved", type_=BigInteger())
    changed = {name: accounts.c[name] + sign * moved for name, sign in CHANGES[kind, operation].items()}
    statement = update(accounts).where(accounts.c.account == bindparam("number")).values(changed)
    if (kind, operation) == ("debit", "try"):
        statement = statement.where(accounts.c.balance >= moved)
    return statement


def read_accounts(engine: Engine) -> list[dict[str, Any]]:
    """Every account as it stands."""
    with engine.connect() as connection:
        return [dict(row) for row in connection.execute(select(accounts)).mappings()]


def read_effects(engine: Engine) -> list[dict[str, Any]]:
    """Every effect, in the order in which they were written."""
    with engine.connect() as connection:
        return [dict(row) for row in connection.execute(select(effects).order_by(effects.c.position)).mappings()]


def _configure_sqlite(connection: Any, _record: Any) -> None:
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=NORMAL")
    cursor.close()
