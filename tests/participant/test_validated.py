"""What was validated at Try is what confirm and cancel get, however long that takes and whatever the type does."""

import logging
from dataclasses import dataclass, field
from datetime import date
from decimal import Decimal
from enum import Enum
from typing import Annotated, Any, Literal
from uuid import UUID, uuid4

import pytest
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    FutureDatetime,
    SecretStr,
    TypeAdapter,
    computed_field,
    field_validator,
)
from sqlalchemy import MetaData, inspect
from sqlalchemy.orm import Session

from holdfast import Hold, Participant
from holdfast.fence.execution import payload_hash
from holdfast.fence.restoring import Restorer
from holdfast.fence.rows import ADDED, Key, branches_table, read, without
from holdfast.testing import FakeCoordinator
from tests.harness.participant_app import EFFECTS, Service

TODAY = [date(2026, 1, 1)]


def in_the_future(day: date) -> date:
    """As pydantic's FutureDate, on a clock of the test's own."""
    if day <= TODAY[-1]:
        raise ValueError("is not in the future")
    return day


class Pickup(BaseModel):
    """Another reservation each time it is validated, and soon no longer valid."""

    reservation: UUID = Field(default_factory=uuid4)
    day: Annotated[date, AfterValidator(in_the_future)]


@pytest.fixture(autouse=True)
def _today(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.participant.test_validated.TODAY", [date(2026, 1, 1)])


def pickups(service: Service, **options: Any) -> tuple[Participant, list[Pickup]]:
    participant = Participant("pickups", service.database, coordinator_url="http://coordinator", **options)
    seen: list[Pickup] = []

    def note(hold: Hold[Pickup], session: Session) -> None:
        seen.append(hold.payload)

    for decorate in (participant.on_try, participant.on_confirm, participant.on_cancel):
        decorate(note)
    return participant, seen


@pytest.mark.parametrize("end", ["confirm", "cancel", "reap"])
async def test_confirm_and_cancel_get_what_was_validated_at_try(
    service: Service, end: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    participant, seen = pickups(service)
    async with FakeCoordinator(participant, decision="cancel") as coordinator:
        branch = coordinator.branch({"day": "2026-01-02"})
        assert (await branch.try_()).ok
        TODAY.append(date(2026, 1, 3))
        assert (await branch.try_()).ok, "a repeat gets the stored answer, though it is no longer valid"
        if end == "reap":
            coordinator.pass_time(61)
            assert await coordinator.reap() == 1
        else:
            assert (await getattr(branch, end)()).ok
        assert len(seen) == 2
        assert seen[0] == seen[1]
        assert (await coordinator.branch({"day": "2026-01-02"}).try_()).problem == "invalid-payload"


async def test_the_hash_and_the_payload_stay_what_was_sent(service: Service) -> None:
    participant, _ = pickups(service)
    async with FakeCoordinator(participant) as coordinator:
        branch = coordinator.branch({"day": "2026-01-02"})
        assert (await branch.try_()).ok
        key = Key("pickups", branch.transaction_id, branch.name)
        row = await participant._database.run(lambda session, _: read(session, participant.table, key))
    assert row is not None
    assert row.payload == '{"day":"2026-01-02"}'
    assert row.payload_hash == payload_hash(row.payload)


def make_old_table(session: Session, _: Any) -> None:
    """The table as versions before 0.2 made it."""
    branches_table(MetaData()).drop(session.connection())
    without(branches_table(MetaData()), ADDED).create(session.connection())
    session.commit()


async def test_a_table_of_an_older_version_is_migrated_with_its_rows(service: Service) -> None:
    await service.participant._database.run(make_old_table)
    old, _ = pickups(service, metadata=MetaData())  # works with the table as it is
    async with FakeCoordinator(old) as coordinator:
        before = coordinator.branch({"day": "2026-01-02"})
        assert (await before.try_()).ok
    participant, seen = pickups(service)
    async with FakeCoordinator(participant) as coordinator:
        branch = coordinator.branch({"day": "2026-01-02"})
        assert (await branch.try_()).ok
        async with FakeCoordinator(old) as other:  # a replica that has not been replaced yet
            for left_to_old in (branch, before):
                again = other.branch(
                    left_to_old.payload, name=left_to_old.name, transaction_id=left_to_old.transaction_id
                )
                assert (await again.confirm()).ok
        TODAY.append(date(2026, 1, 3))
        assert (await coordinator.branch({"day": "2026-01-04"}).try_()).ok
    assert len(seen) == 2


async def test_a_services_own_table_works_before_its_migration(
    service: Service, caplog: pytest.LogCaptureFixture
) -> None:
    await service.participant._database.run(make_old_table)
    participant, seen = pickups(service, metadata=MetaData())
    async with FakeCoordinator(participant) as coordinator:
        branch = coordinator.branch({"day": "2026-01-02"})
        assert (await branch.try_()).ok
        assert (await branch.confirm()).ok
    assert "has no column validated" in caplog.text
    assert len(seen) == 2


class Colour(Enum):
    RED = "red"


class Item(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    amount: Decimal = Field(alias="amountDue", gt=1)
    colour: Colour
    either: int | str
    pair: tuple[int, str]
    numbers: set[int]
    hidden: str = Field(exclude=True)
    kind: Literal["item"] = "item"

    @field_validator("hidden")
    @classmethod
    def louder(cls, value: str) -> str:
        return f"{value}!"

    @computed_field  # type: ignore[prop-decorator]
    @property
    def double(self) -> Decimal:
        return 2 * self.amount


class Late(BaseModel):
    kind: Literal["late"]
    at: FutureDatetime


@dataclass
class Order:
    items: list[Annotated[Item | Late, Field(discriminator="kind")]]
    order_id: UUID = field(default_factory=uuid4)


ITEM = '{"amountDue":"1.10","colour":"red","either":"7","pair":[1,"a"],"numbers":[2,1],"hidden":"psst","kind":"item"}'
SOON = "2999-01-01T00:00:00Z"


@pytest.mark.parametrize(
    ("wanted", "sent"),
    [
        (Pickup, '{"day":"2026-01-02"}'),
        (Item, ITEM),
        (Order, f'{{"items":[{ITEM},{{"kind":"late","at":"{SOON}"}}]}}'),
        (dict[str, FutureDatetime], f'{{"a":"{SOON}"}}'),
        (list[Pickup], '[{"day":"2026-01-02"},{"day":"2026-02-02"}]'),
        (int, "7"),
    ],
)
def test_values_come_back_equal(wanted: Any, sent: str) -> None:
    adapter = TypeAdapter(wanted)
    value = adapter.validate_json(sent)
    dumped = Restorer(adapter).dump(value)
    assert dumped is not None
    assert Restorer(TypeAdapter(wanted)).restore(dumped, sent) == value
    assert Restorer(TypeAdapter(wanted)).restore(dumped, "[[]]") == value, "whatever validating anew would say"


class Login(BaseModel):
    password: SecretStr


def test_what_json_does_not_bring_back_is_validated_anew() -> None:
    adapter = TypeAdapter(Login)
    value = adapter.validate_json('{"password":"x"}')
    assert Restorer(adapter).dump(value) is None, "and no secret is stored as asterisks, or twice"


@pytest.mark.parametrize("kind", ["sqlite"])
async def test_the_log_of_a_migrated_table_is_silent(service: Service, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "holdfast"):
        participant, _ = pickups(service)
        async with FakeCoordinator(participant):
            assert caplog.records == []
            columns = await service.rows(EFFECTS.select())
    assert columns == []
    assert inspect(participant.table).c.validated.nullable
