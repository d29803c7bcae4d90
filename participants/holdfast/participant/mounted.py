"""`Mounted`: what all participants have that a service mounts. Only wires the other modules together."""

import logging
import math
import random
import ssl
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from types import MappingProxyType
from typing import Final, Literal

import httpx
from fastapi import APIRouter
from sqlalchemy import MetaData, Table

from holdfast.connections import check_tls
from holdfast.fence import stray
from holdfast.fence.database import AnyDatabase, Database, collided, printable_database
from holdfast.fence.execution import Happening, Outcome, Rules, carry_out
from holdfast.fence.failures import Failure, failure_of
from holdfast.fence.handlers import Handlers
from holdfast.fence.rows import PARTICIPANT_CHARS_MAX, Key, Row, branches_table, without
from holdfast.fence.schedule import Schedule
from holdfast.fence.steps import Event, Fence
from holdfast.fence.values import MakeValue, Value
from holdfast.json_text import NULL
from holdfast.participant import inquiry
from holdfast.participant.background import Background
from holdfast.participant.inquiry import Answered, Ask
from holdfast.participant.reaper import Reaper
from holdfast.participant.routes import Answer, Description, Message, router_for
from holdfast.participant.running import Running
from holdfast.participant.signatures import Signatures, read_secrets
from holdfast.urls import base_url, credentials, printable_url
from holdfast.wire import UNDOES, Kind, Operation

log = logging.getLogger("holdfast")

REPEATS_MAX: Final = 5
"""Maximum attempts at a call whose database transaction keeps colliding with others."""
HANDLER_TIMEOUT_DEFAULT_S: Final = 30.0
LEASE_MARGIN_S: Final = 5.0
"""How much longer than its handler's time limit a two-step run keeps its lease, to write the result."""
_WITHOUT: Final = {
    "validated": "payloads are validated again at confirm and cancel",
    "coordinator_id": "the decision of another coordinator is obeyed, too",
}
"""What is different while the table lacks a column."""


class Mounted(ABC):
    """The common part of all participants: table, routes, lifespan, background task, signatures.

    `fence`, `schedule`, `make_value` and `value_type` are what a kind consists of; docs/reference/sdk.md describes the
    other arguments. Raises TypeError if `database` is not a database, and ValueError if it isn't supported or if limits
    contradict each other.
    """

    def __init__(
        self,
        name: str,
        database: AnyDatabase,
        *,
        fence: Fence,
        schedule: Schedule,
        make_value: MakeValue,
        value_type: type[Value],
        coordinator_url: str,
        metadata: MetaData | None,
        two_step: bool,
        handler_timeout_s: float | None,
        retention_s: float,
        reap_interval_s: float,
        ask_timeout_s: float,
        secrets: Sequence[str],
        signatures: Literal["accept", "require"] | None,
        signature_tolerance_s: float,
        clock: Callable[[], float],
        tls: ssl.SSLContext | None,
        transport: httpx.AsyncBaseTransport | None,
        api_key: str | None,
    ) -> None:
        _check_name(name)
        check_limits(
            handler_timeout_s=handler_timeout_s,
            retention_s=retention_s,
            reap_interval_s=reap_interval_s,
            ask_timeout_s=ask_timeout_s,
            signature_tolerance_s=signature_tolerance_s,
        )
        check_tls(tls, transport)
        self._tls = tls
        known, requires = read_secrets(secrets, signatures)
        self._signatures = Signatures(name, known, requires=requires, tolerance_s=signature_tolerance_s, clock=clock)
        self.name: Final = name
        self.coordinator_url: Final = base_url(coordinator_url)
        self._credentials = credentials(api_key)
        self._database = Database(database)
        can_stop = two_step or self._database.asynchronous
        handler_timeout_s = _handler_timeout_s(handler_timeout_s, can_stop_handlers=can_stop)
        self._creates_table = metadata is None
        self._knows_table = False
        self._metadata = MetaData() if metadata is None else metadata
        self.table: Final[Table] = branches_table(self._metadata)
        self._rules = Rules(
            table=self.table,
            fence=fence,
            schedule=schedule,
            handlers=Handlers(
                asynchronous=self._database.asynchronous, two_step=two_step, first=fence.first, value_type=value_type
            ),
            make_value=make_value,
            two_step=two_step,
            handler_timeout_s=handler_timeout_s,
            lease_s=handler_timeout_s + LEASE_MARGIN_S,
            jitter=random.random,
            clock=clock,
        )
        self._retention_s = retention_s
        self._reap_interval_s = reap_interval_s
        self._ask_timeout_s = ask_timeout_s
        self._transport = transport
        self._running = Running()
        self._background = Background(f"reaper of {name}", self._reap_for_ever)
        self._is_alone_known = False
        self.router: Final[APIRouter] = router_for(
            Description(name, fence, self._signatures), self._receive, self._failure_of, lifespan=self.lifespan
        )

    @property
    def kind(self) -> Kind:
        """The kind of branch that this participant is for."""
        return self._rules.fence.kind

    @property
    def signature_counts(self) -> Mapping[str, int]:
        """How many calls to this process were signed: `valid`, `missing` and `wrong`. All 0 without secrets."""
        return MappingProxyType(self._signatures.counts)

    @asynccontextmanager
    async def lifespan(self, app: object = None) -> AsyncIterator[None]:
        """Create the table, unless the service owns its metadata, and look after its rows while the service runs.

        `include_router(participant.router)` includes it. It can also be `FastAPI(lifespan=...)`, or be entered in the
        service's own lifespan: however often it is entered, one background task runs. Raises RuntimeError if the
        table is missing, or if a handler is missing that the participant needs.
        """
        await self._prepare()
        if not self._background.is_running:
            self._announce()
        async with self._background.running():
            yield

    async def create_table(self) -> None:
        """Create `holdfast_branches` if it is missing, and no other table of its metadata."""
        await self._database.create(self.table)

    async def reap(self) -> int:
        """Run one round of the background task; returns how many rows were settled."""
        async with self._asking() as ask:
            return await self._reaper(ask).run_once()

    async def _prepare(self) -> None:
        first = self._rules.fence.first
        if first not in self._rules.handlers:
            raise RuntimeError(
                f"participant {self.name!r} has no {first} handler: decorate one with @on_{first} before it starts"
            )
        if self._creates_table:
            await self.create_table()
        await self._look_at_table()
        if not self._knows_table:
            raise RuntimeError(
                f"participant {self.name!r}: its database has no table {self.table.fullname!r}. The table belongs to "
                "the metadata that the participant was given: create it with a migration or "
                "metadata.create_all() before the service starts, or call participant.create_table()"
            )

    async def _look_at_table(self) -> None:
        """Find out once whether the table has been migrated; an older table works, too."""
        if self._knows_table:
            return
        missing = await self._database.missing_columns(self.table)
        for name in missing or ():
            log.warning(
                "event=table_outdated table=%s The table has no column %s: %s. Run the service's migrations, and start "
                "again.",
                self.table.fullname,
                name,
                _WITHOUT[name],
            )
        if missing:
            self._rules = replace(self._rules, table=without(self.table, missing))
        self._knows_table = missing is not None

    def _announce(self) -> None:
        """Log the participant's configuration on one line."""
        log.info(
            "event=participant_started participant=%s kind=%s database=%s table=%s coordinator=%s form=%s "
            "signatures=%s reap_interval_s=%s",
            self.name,
            self._rules.fence.kind.value,
            printable_database(self._database.engine.url),
            self.table.fullname,
            printable_url(self.coordinator_url),
            "two-step" if self._rules.two_step else "one-step",
            self._signatures.form,
            self._reap_interval_s,
        )

    async def _receive(self, operation: Operation, message: Message) -> Answer:
        self._tell_if_alone()
        payload = message.payload
        if operation is self._rules.fence.first and payload is None:
            payload = NULL
        await self._look_at_table()
        rules, event = self._read(operation, message.kind)
        happening = Happening(
            key=Key(self.name, message.transaction_id, message.branch),
            event=event,
            attempt=message.attempt,
            payload=payload,
            hold_ttl_s=message.hold_ttl_s,
            was_held=message.held,
            coordinator_id=message.coordinator_id,
            results=message.results,
        )
        outcome = await self._perform(happening, rules)
        assert outcome.row is not None
        announced_s = self._rules.schedule.announced_s(outcome.row, is_first=outcome.is_first, now=self._rules.clock())
        return Answer(outcome.row, announced_s)

    def _read(self, operation: Operation, kind: str) -> tuple[Rules, Event]:
        """What a call means to this participant, and by which rules."""
        fence = self._rules.fence
        if kind == fence.kind and operation in fence.operations:
            return self._rules, Event(operation.value)
        rules = replace(self._rules, fence=replace(fence, decide=stray.decide))
        if operation in UNDOES:
            return rules, Event.STRAY_UNDO
        return rules, Event.STRAY_PIVOT if kind == Kind.PIVOT else Event.STRAY

    async def _perform(self, happening: Happening, rules: Rules | None = None) -> Outcome:
        """Process an event, and retry at once if the database rolled it back in favour of another transaction."""
        work = partial(carry_out, rules or self._rules, happening)
        lease_s = self._rules.lease_s if self._rules.two_step else math.inf  # a one-step run holds the row's lock
        async with self._running.alone(happening.key, self._rules.clock, lease_s=lease_s):
            for _ in range(REPEATS_MAX - 1):
                try:
                    return await self._database.run(work, calls_handlers=True)
                except Exception as error:
                    if not collided(error):
                        raise
            return await self._database.run(work, calls_handlers=True)

    async def _reap_for_ever(self) -> None:
        async with self._asking() as ask:
            await self._reaper(ask).run_for_ever(self._reap_interval_s)

    def _tell_if_alone(self) -> None:
        """Warn once that nothing looks after holds in this process."""
        if not self._is_alone_known and not self._background.is_running:
            self._is_alone_known = True
            log.warning(
                "event=lifespan_missing participant=%s Its lifespan isn't running, so holds don't expire and no row is "
                "purged. The lifespan of a mounted sub-application is never run: enter participant.lifespan() in the "
                "outermost.",
                self.name,
            )

    def _failure_of(self, error: BaseException) -> Failure:
        return failure_of(error, self._database.engine)

    @abstractmethod
    def _finding(self, row: Row, answered: Answered) -> Event | None:
        """What it means for a row that the coordinator answered so; None: ask again later."""

    def _reaper(self, ask: Ask) -> Reaper:
        return Reaper(
            participant=self.name,
            rules=self._rules,
            database=self._database,
            perform=self._perform,
            ask=ask,
            finding=self._finding,
            retention_s=self._retention_s,
        )

    @asynccontextmanager
    async def _asking(self) -> AsyncIterator[Ask]:
        """How to ask the coordinator; closes the connections on exit, unless the service provided the transport."""
        if self._transport is not None:
            yield self._ask_over(self._transport)
            return
        verify: ssl.SSLContext | bool = self._tls or self.coordinator_url.startswith(
            "https://"
        )  # reading the certificates takes a while
        async with httpx.AsyncHTTPTransport(verify=verify) as transport:
            yield self._ask_over(transport)

    def _ask_over(self, transport: httpx.AsyncBaseTransport) -> Ask:
        return partial(
            inquiry.ask,
            transport,
            self.coordinator_url,
            timeout_s=self._ask_timeout_s,
            headers=self._credentials,
        )


def _check_name(name: str) -> None:
    if not 1 <= len(name) <= PARTICIPANT_CHARS_MAX:
        raise ValueError(f"name must have 1 to {PARTICIPANT_CHARS_MAX} characters, not {len(name)}")
    if not name.isprintable() or name != name.strip():
        raise ValueError(f"name must be printable, without leading or trailing spaces, to fit in a header: {name!r}")


def _handler_timeout_s(wanted_s: float | None, *, can_stop_handlers: bool) -> float:
    if wanted_s is not None and not can_stop_handlers:
        raise ValueError(
            "handler_timeout_s can't stop a def handler on a synchronous engine: set the database's own "
            "timeouts, or use two_step=True for handlers that call out"
        )
    return HANDLER_TIMEOUT_DEFAULT_S if wanted_s is None else wanted_s


def check_limits(**limits: float | None) -> None:
    """Raise ValueError for a limit that isn't more than 0 seconds."""
    for name, seconds in limits.items():
        if seconds is not None and not seconds > 0:
            raise ValueError(f"{name} must be more than 0 seconds, not {seconds}")
