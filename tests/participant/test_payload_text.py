"""Payloads arrive digit by digit, and the same identity with another payload is refused to the last digit."""

import json
from decimal import Decimal
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from pydantic import BaseModel
from sqlalchemy.orm import Session

from holdfast import Hold, Participant
from holdfast.fence.execution import payload_hash
from holdfast.fence.rows import Key, read
from holdfast.json_text import JsonText, checked, text_of
from holdfast.wire import DOCUMENT_BYTES_MAX, ENVELOPE_BYTES_MAX, Message, Operation
from tests.harness.participant_app import Service

AMOUNT = "1234567890123456.78"
ROUNDED = "1234567890123456.8"
ID = "0199b2c4-5e11-7c3a-9f60-2b8d1e47a905"


class Payment(BaseModel):
    amount: Decimal
    note: Any = None


class Payments:
    """A participant that notes the payload and result that its handlers get."""

    def __init__(self, service: Service, payload_type: Any) -> None:
        self.participant = Participant("payments", service.database, coordinator_url="http://coordinator")
        self.seen: list[Any] = []

        def note(hold: Hold[Any], session: Session) -> Any:
            self.seen.append(hold.payload)
            return {"paid": hold.payload, "note": hold.result}

        note.__annotations__["hold"] = Hold[payload_type]
        for decorate in (self.participant.on_try, self.participant.on_confirm, self.participant.on_cancel):
            decorate(note)
        self._app = FastAPI()
        self._app.include_router(self.participant.router)

    async def call(self, operation: Operation, payload: str, *, id_: str = ID) -> httpx.Response:
        message = Message(
            transaction_id=id_,
            branch="payment",
            operation=operation,
            attempt=1,
            payload=JsonText(payload),
            hold_ttl_s=60.0 if operation is Operation.TRY else None,
        )
        transport = httpx.ASGITransport(self._app)
        async with httpx.AsyncClient(transport=transport, base_url="http://participant") as client:
            return await client.post(f"/{operation}", content=message.body(), headers=message.headers())


@pytest.mark.parametrize("payload_type", [Payment, Any])
async def test_a_decimal_gets_every_digit(service: Service, payload_type: Any) -> None:
    payments = Payments(service, payload_type)
    payload = f'{{"amount":{AMOUNT}, "note":[1E400,-0.0,9007199254740993]}}'
    for operation in (Operation.TRY, Operation.CONFIRM):
        assert (await payments.call(operation, payload)).status_code == 200
    for seen in payments.seen:
        amount, note = (seen.amount, seen.note) if payload_type is Payment else (seen["amount"], seen["note"])
        assert Decimal(str(amount)) == Decimal(AMOUNT)
        assert [str(each) for each in note] == ["1E400", "-0.0", "9007199254740993"]
    assert len(payments.seen) == 2


async def test_what_a_handler_returns_of_its_payload_has_every_digit(service: Service) -> None:
    payments = Payments(service, Any)
    numbers = f"[{AMOUNT},1E400,-1.50e-400,9007199254740993]"
    for _ in range(2):
        answer = await payments.call(Operation.TRY, f'{{"amount": {numbers}, "1": [{{}}]}}')
        assert answer.text == f'{{"paid":{{"amount":{numbers},"1":[{{}}]}},"note":null}}', "also the second time"


async def test_amounts_that_are_one_double_are_two_payloads(service: Service) -> None:
    payments = Payments(service, Payment)
    assert (await payments.call(Operation.TRY, f'{{"amount": {AMOUNT}}}')).status_code == 200
    assert (await payments.call(Operation.TRY, f'{{"amount":{AMOUNT}0}}')).status_code == 200, "the same number"
    other = await payments.call(Operation.TRY, f'{{"amount": {ROUNDED}}}')
    assert (other.status_code, other.json()["type"]) == (409, "/problems/payload-mismatch")
    assert len(payments.seen) == 1


@pytest.mark.parametrize("operation", [Operation.CONFIRM, Operation.CANCEL])
async def test_what_was_decided_is_carried_out_although_a_version_before_rounded(
    service: Service, operation: Operation
) -> None:
    """Version 0.1 stored the payload as it had parsed it. A Confirm or Cancel that is refused would hang."""
    payments = Payments(service, Payment)
    assert (await payments.call(Operation.TRY, f'{{"amount":{ROUNDED}}}')).status_code == 200
    assert (await payments.call(operation, f'{{"amount": {AMOUNT}}}')).status_code == 200


async def test_the_hash_stays_in_the_form_that_replicas_of_the_version_before_know(service: Service) -> None:
    payments = Payments(service, Payment)
    await payments.participant.create_table()
    sent = f'{{"note": [1.0, "x"],\n"amount":{AMOUNT}}}'
    assert (await payments.call(Operation.TRY, sent)).status_code == 200
    key = Key("payments", ID, "payment")
    row = await payments.participant._database.run(lambda session, _: read(session, payments.participant.table, key))
    assert row is not None
    assert row.payload == sent
    before = text_of(json.loads(sent))  # as version 0.1 passed it on
    assert row.payload_hash == payload_hash(before)
    known = "7a0e7f32fbafb78a206699ce650f285cd787d43ebd406cb8ad9b0f73d7253724"
    assert payload_hash('{"amount":2.0,"a":[1.5,9007199254740993,"x"]}') == known


async def test_what_a_coordinator_may_send_a_participant_takes(service: Service) -> None:
    """The largest payload with the largest result and the largest results of others, whatever the call."""
    payments = Payments(service, Any)
    payload = checked(b'"%b"' % (b"\x7f" * (DOCUMENT_BYTES_MAX - 2)))
    result = checked(b'"%b"' % (b"r" * (DOCUMENT_BYTES_MAX - ENVELOPE_BYTES_MAX - 2)))
    message = Message(
        transaction_id=ID,
        branch="b" * 64,
        operation=Operation.CONFIRM,
        attempt=2**31,
        payload=payload,
        result=result,
        results={"order": result},
    )
    transport = httpx.ASGITransport(payments._app)
    async with httpx.AsyncClient(transport=transport, base_url="http://participant") as client:
        answer = await client.post("/confirm", content=message.body(), headers=message.headers())
    assert (answer.status_code, answer.json()["type"]) == (409, "/problems/nothing-held")
