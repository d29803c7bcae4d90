"""For a service's own tests: drives a participant without a coordinator and without sleeping.

Calls go through the participant's real router to its real database. The test controls only the clock, the coordinator's
answers, and when a crash happens. Guide: docs/how-to/test-a-participant.md.
"""

import uuid
from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal, Self

import httpx
from fastapi import FastAPI
from sqlalchemy.orm import Session

from holdfast.fence import rows
from holdfast.fence.execution import CrashPoint
from holdfast.fence.handlers import Invoke
from holdfast.fence.rows import Key
from holdfast.json_text import parsed, text_of
from holdfast.jsonable import jsonable
from holdfast.participant import inquiry
from holdfast.participant.mounted import Mounted
from holdfast.signing import message_id, signed_headers
from holdfast.wire import UNDOES, Kind, Message, Operation, hold_ttl_s, retry_after_s

FIRST_CALLS: Final = frozenset({Operation.TRY, Operation.ACTION})

Decided = Literal["confirm", "cancel", "undecided", "unknown", "unreachable"]
"""What the fake coordinator answers when the participant asks for a decision."""


class Crash(BaseException):
    """Simulates the death of the process: nothing catches it, and nothing is cleaned up."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A participant's answer to a call."""

    status: int
    body: Any
    problem: str | None
    detail: str | None
    hold_ttl_s: float | None
    retry_after_s: float | None

    @property
    def ok(self) -> bool:
        """Whether the coordinator would count it as done."""
        return self.status == 200


class FakeCoordinator:
    """Stands in for the coordinator of one participant; use it with `async with`.

    `decision` is what it answers from now on, and `finished` whether all calls have been made; `asked` has the
    transaction ids that it was asked about.
    `coordinator_id` is what its Trys and its answers carry: change it after a Try, and another coordinator answers.
    None stands for a coordinator of version 0.1.
    """

    def __init__(
        self,
        participant: Mounted,
        *,
        decision: Decided = "undecided",
        finished: bool = False,
        coordinator_id: str | None = "fake",
    ) -> None:
        self.participant: Final = participant
        self.decision: Decided = decision
        self.finished = finished
        self.coordinator_id = coordinator_id
        self.asked: list[str] = []
        self._rules = participant._rules
        self._transport = participant._transport
        self._passed_s = 0.0
        self._app = FastAPI()
        self._app.include_router(participant.router)

    async def __aenter__(self) -> Self:
        self.participant._rules = replace(self._rules, clock=self._now, probe=_probe)
        self.participant._transport = httpx.MockTransport(self._answer)
        self.participant._is_alone_known = True  # only the test moves time: no background task
        await self.participant._prepare()
        return self

    async def __aexit__(self, *exception: object) -> None:
        own = self._rules
        self.participant._rules = replace(self.participant._rules, clock=own.clock, probe=own.probe)
        self.participant._transport = self._transport

    def branch(
        self,
        payload: Any = None,
        *,
        name: str | None = None,
        transaction_id: str | None = None,
        hold_ttl_s: float | None = 60.0,
        results: Mapping[str, Any] | None = None,
        kind: Kind | str | None = None,
    ) -> "Branch":
        """A branch of a new transaction, or of `transaction_id`; named after the participant unless `name` is given.

        `results`: what the branches returned that this one waits for. `kind`: the participant's, unless it is given.
        """
        return Branch(
            coordinator=self,
            transaction_id=transaction_id or str(uuid.uuid4()),
            name=name or self.participant.name,
            payload=jsonable(payload),
            hold_ttl_s=hold_ttl_s,
            results=None if results is None else {name: jsonable(each) for name, each in results.items()},
            kind=Kind(kind or self.participant.kind),
        )

    def pass_time(self, seconds: float) -> None:
        """Move the participant's clock forward."""
        self._passed_s += seconds

    async def reap(self) -> int:
        """Run one round of the participant's background task; returns how many rows were settled."""
        return await self.participant.reap()

    def _now(self) -> float:
        return self._rules.clock() + self._passed_s

    def _answer(self, request: httpx.Request) -> httpx.Response:
        self.asked.append(request.url.path.split("/")[-2])
        says_who = {} if self.coordinator_id is None else {"coordinator_id": self.coordinator_id}
        match self.decision:
            case "unreachable":
                raise httpx.ConnectError("the coordinator is down", request=request)
            case "unknown":
                return httpx.Response(404, json={"type": inquiry.UNKNOWN_TRANSACTION, "status": 404, **says_who})
            case decision:
                document = {"decision": decision, "recheck_in_s": 10, "finished": self.finished, **says_who}
                return httpx.Response(200, json=document)


@dataclass(slots=True, kw_only=True)
class Branch:
    """A branch that the fake coordinator drives.

    As the real one does, it counts attempts per operation, and says in a cancel or compensation whether it saw the try
    or action succeed (`held`).
    """

    coordinator: FakeCoordinator
    transaction_id: str
    name: str
    payload: Any
    hold_ttl_s: float | None
    results: Mapping[str, Any] | None
    kind: Kind
    attempts: dict[Operation, int] = field(default_factory=dict)
    result: Any = None
    held: bool = False

    async def try_(self) -> Answer:
        """Call try."""
        return await self._call(Operation.TRY)

    async def confirm(self) -> Answer:
        """Call confirm."""
        return await self._call(Operation.CONFIRM)

    async def cancel(self) -> Answer:
        """Call cancel."""
        return await self._call(Operation.CANCEL)

    async def action(self) -> Answer:
        """Call action."""
        return await self._call(Operation.ACTION)

    async def compensation(self) -> Answer:
        """Call compensation."""
        return await self._call(Operation.COMPENSATION)

    async def crash(self, operation: Operation | str, *, at: CrashPoint | str) -> None:
        """Make a call during which the process dies at a point; AssertionError if the call never gets there."""
        point = CrashPoint(at)
        token = _dies_at.set(point)
        try:
            await self._call(Operation(operation))
        except Crash:
            return
        finally:
            _dies_at.reset(token)
        raise AssertionError(f"{operation} never reached the crash point {point.value!r}")

    async def phase(self) -> str | None:
        """The state of the participant's row, or None if there is no row."""
        participant = self.coordinator.participant
        key = Key(participant.name, self.transaction_id, self.name)

        def work(session: Session, _: Invoke) -> str | None:
            row = rows.read(session, participant._rules.table, key)
            return None if row is None else row.state.value

        return await participant._database.run(work)

    async def _call(self, operation: Operation) -> Answer:
        attempt = self.attempts[operation] = self.attempts.get(operation, 0) + 1
        is_first = operation in FIRST_CALLS
        message = Message(
            transaction_id=self.transaction_id,
            branch=self.name,
            operation=operation,
            attempt=attempt,
            payload=text_of(self.payload),
            hold_ttl_s=self.hold_ttl_s if operation is Operation.TRY else None,
            result=None if is_first else text_of(self.result),
            held=operation in UNDOES and self.held,
            coordinator_id=self.coordinator.coordinator_id if is_first else None,
            kind=self.kind,
            results=None if self.results is None else {name: text_of(each) for name, each in self.results.items()},
        )
        body = message.body()
        headers = message.headers() | self._signature(message, body)
        transport = httpx.ASGITransport(self.coordinator._app)
        async with httpx.AsyncClient(transport=transport, base_url="http://participant") as client:
            response = await client.post(f"/{operation.value}", content=body, headers=headers)
        answer = _answer(response)
        if is_first and answer.ok:
            self.result, self.held = answer.body, True
        return answer

    def _signature(self, message: Message, body: bytes) -> dict[str, str]:
        """The call is signed with the participant's first secret, if it has one."""
        signatures = self.coordinator.participant._signatures
        id_ = message_id(message.transaction_id, message.branch, message.operation)
        secrets = signatures.secrets[:1]
        return signed_headers(secrets, id_, int(signatures.clock()), body) if secrets else {}


_dies_at: ContextVar[CrashPoint | None] = ContextVar("_dies_at", default=None)  # per call


def _probe(reached: CrashPoint) -> None:
    if _dies_at.get() is reached:
        raise Crash(reached.value)


def _answer(response: httpx.Response) -> Answer:
    body = parsed(response.content)
    is_problem = response.headers.get("content-type", "").startswith("application/problem+json")
    members = body if is_problem and isinstance(body, dict) else {}
    return Answer(
        status=response.status_code,
        body=body,
        problem=str(members["type"]).removeprefix("/problems/") if "type" in members else None,
        detail=members.get("detail"),
        hold_ttl_s=hold_ttl_s(response.headers),
        retry_after_s=retry_after_s(response.headers),
    )
