"""docs/explanation/isolation.md: each anomaly happens without its pattern, and doesn't with it."""

from collections.abc import Iterator

import pytest
from sqlalchemy import create_engine, select
from sqlalchemy.orm import Session

from examples import isolation
from examples.isolation import Base, Customer, Invoice, Price, Stock
from holdfast import Refused


@pytest.fixture
def session() -> Iterator[Session]:
    engine = create_engine("sqlite://")
    Base.metadata.create_all(engine)
    with Session(engine) as session:
        session.add_all(
            [Stock(sku="A-1", on_hand=1), Customer(id=1, address="old street"), Price(sku="A-1", cents=500)]
        )
        session.commit()
        yield session
    engine.dispose()


def test_without_a_semantic_lock_a_customer_is_sent_away_for_an_order_that_never_was(session: Session) -> None:
    isolation.take_at_once(session, "A-1")
    assert isolation.shown_to_customers(session, "A-1") == "sold out"
    stock = session.get_one(Stock, "A-1", populate_existing=True)
    stock.on_hand += 1  # the compensation
    session.flush()
    assert isolation.shown_to_customers(session, "A-1") == "available"


def test_with_it_others_see_that_it_is_in_somebodys_hands(session: Session) -> None:
    isolation.reserve(session, "A-1")
    assert isolation.shown_to_customers(session, "A-1") == "reserved, look again later"
    with pytest.raises(Refused):
        isolation.reserve(session, "A-1")
    isolation.hand_over(session, "A-1")
    session.expire_all()
    assert isolation.shown_to_customers(session, "A-1") == "sold out"


def test_without_a_version_the_compensation_undoes_somebody_elses_change(session: Session) -> None:
    result = isolation.move(session, 1, "new street")
    isolation.move(session, 1, "the customer's own choice")
    isolation.move_back_blindly(session, 1, result)
    session.expire_all()
    assert session.get_one(Customer, 1).address == "old street"


def test_with_it_a_later_change_stands(session: Session) -> None:
    result = isolation.move(session, 1, "new street")
    isolation.move(session, 1, "the customer's own choice")
    assert isolation.move_back(session, 1, result) == "changed since: nothing to undo"
    assert session.get_one(Customer, 1).address == "the customer's own choice"


def test_with_it_the_own_change_is_undone(session: Session) -> None:
    result = isolation.move(session, 1, "new street")
    assert isolation.move_back(session, 1, result) == "undone"
    assert session.get_one(Customer, 1).address == "old street"


def test_without_a_second_look_an_invoice_has_a_price_that_is_no_longer_so(session: Session) -> None:
    quoted = isolation.quote(session, "A-1")
    session.get_one(Price, "A-1").cents = 700
    isolation.invoice_as_quoted(session, "A-1", quoted)
    assert session.execute(select(Invoice.cents)).scalar_one() == 500


def test_with_it_the_step_refuses(session: Session) -> None:
    quoted = isolation.quote(session, "A-1")
    session.get_one(Price, "A-1").cents = 700
    with pytest.raises(Refused, match="700 now"):
        isolation.invoice(session, "A-1", quoted)
    assert session.execute(select(Invoice)).all() == []
