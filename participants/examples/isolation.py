"""Three ways to live with what a saga shows before it is decided, each beside what goes wrong without it.

Plain SQLAlchemy, without transport: docs/explanation/isolation.md explains them, and a test shows both sides of each.
"""

from sqlalchemy import ForeignKey, select, update
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
from sqlalchemy.orm.exc import StaleDataError

from holdfast import Refused


class Base(DeclarativeBase):
    pass


# --- a semantic lock -------------------------------------------------------------------------------------------------


class Stock(Base):
    __tablename__ = "stock"

    sku: Mapped[str] = mapped_column(primary_key=True)
    on_hand: Mapped[int]
    reserved: Mapped[int] = mapped_column(default=0)


def take_at_once(session: Session, sku: str) -> None:
    """Without: the action takes what its compensation may bring back."""
    session.execute(update(Stock).where(Stock.sku == sku, Stock.on_hand > 0).values(on_hand=Stock.on_hand - 1))


def reserve(session: Session, sku: str) -> None:
    """The action only marks what it wants: others see that it is in somebody's hands, and not gone."""
    is_free = Stock.on_hand > Stock.reserved
    found = session.execute(update(Stock).where(Stock.sku == sku, is_free).values(reserved=Stock.reserved + 1))
    if found.rowcount == 0:  # type: ignore[attr-defined]
        raise Refused("all that is left is reserved")


def hand_over(session: Session, sku: str) -> None:
    """The retryable step after the decision takes it, and the mark with it."""
    taken = {"on_hand": Stock.on_hand - 1, "reserved": Stock.reserved - 1}
    session.execute(update(Stock).where(Stock.sku == sku).values(taken))


def shown_to_customers(session: Session, sku: str) -> str:
    stock = session.execute(select(Stock).where(Stock.sku == sku)).scalar_one()
    if stock.on_hand == 0:
        return "sold out"
    return "available" if stock.on_hand > stock.reserved else "reserved, look again later"


# --- a version column ------------------------------------------------------------------------------------------------


class Customer(Base):
    __tablename__ = "customer"

    id: Mapped[int] = mapped_column(primary_key=True)
    address: Mapped[str]
    version: Mapped[int] = mapped_column()

    __mapper_args__ = {"version_id_col": version}  # noqa: RUF012


def move(session: Session, customer_id: int, address: str) -> dict[str, object]:
    """The action; its result says what was there before, and which version it has made."""
    customer = session.get_one(Customer, customer_id)
    before = customer.address
    customer.address = address
    session.flush()
    return {"before": before, "version": customer.version}


def move_back_blindly(session: Session, customer_id: int, result: dict[str, object]) -> None:
    """Without: the compensation writes what was there, over everything that has happened since."""
    session.execute(update(Customer).where(Customer.id == customer_id).values(address=result["before"]))


def move_back(session: Session, customer_id: int, result: dict[str, object]) -> str:
    """The compensation undoes its own change only: a later one stands."""
    customer = session.get_one(Customer, customer_id)
    if customer.version != result["version"]:
        return "changed since: nothing to undo"
    customer.address = str(result["before"])
    try:
        session.flush()
    except StaleDataError:  # a concurrent write won, between the look and this one
        return "changed since: nothing to undo"
    return "undone"


# --- a second look before the write ----------------------------------------------------------------------------------


class Price(Base):
    __tablename__ = "price"

    sku: Mapped[str] = mapped_column(primary_key=True)
    cents: Mapped[int]


class Invoice(Base):
    __tablename__ = "invoice"

    id: Mapped[int] = mapped_column(primary_key=True)
    sku: Mapped[str] = mapped_column(ForeignKey("price.sku"))
    cents: Mapped[int]


def quote(session: Session, sku: str) -> int:
    """An early step, a check, say: its result is handed on to the step that writes."""
    return session.get_one(Price, sku).cents


def invoice_as_quoted(session: Session, sku: str, quoted: int) -> None:
    """Without: writes what was read some steps ago."""
    session.add(Invoice(sku=sku, cents=quoted))


def invoice(session: Session, sku: str, quoted: int) -> None:
    """Reads again in the transaction that writes, and refuses if it is no longer so."""
    price = session.get_one(Price, sku, with_for_update=True)
    if price.cents != quoted:
        raise Refused(f"the price was {quoted} when the order began, and is {price.cents} now")
    session.add(Invoice(sku=sku, cents=quoted))
