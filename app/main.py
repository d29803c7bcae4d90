"""The composition root: settings → storage → calling → engine → api. Everything is wired up here, once."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import httpx
from fastapi import FastAPI

from app.api import (
    admin,
    audit,
    health,
    keys,
    openapi_document,
    participant_secrets,
    participants,
    problems,
    transactions,
)
from app.api.access import Gate
from app.api.body_limit import BodyLimit
from app.api.client_address import ClientAddress
from app.api.dependencies import Parts
from app.api.host_check import HostCheck
from app.api.path_prefix import PathPrefix
from app.api.readiness import Readiness
from app.api.rendering import exported
from app.api.upgrade import Upgrade
from app.auth.authentication import Authenticator
from app.auth.denials import Denials
from app.auth.keys import Keys
from app.auth.later_writes import LaterWrites
from app.auth.rate_limit import RateLimit
from app.calling.caller import Caller
from app.calling.registry import Registry, secrets_fault
from app.calling.transport import Transport
from app.clock import Clock, MachineClock, elapsed_s, wall_s
from app.docs_ui import pages
from app.engine.coordinator import Coordinator
from app.engine.forgotten import NOTHING, Forgotten, find_forgotten
from app.engine.inbox import Inbox
from app.engine.memory_budget import MemoryBudget
from app.engine.notifications import Notifications
from app.engine.recovery import Recovery
from app.maintenance.audit_retention import AuditRetention
from app.maintenance.clock_sync import ClockSync, asks_the_database, asks_the_machine, clock_of
from app.maintenance.export import Export
from app.maintenance.retention import DAY_S, Retention
from app.metrics import Metrics
from app.settings import Settings
from app.storage.coordinator_id import find_coordinator_id
from app.storage.engines import is_embedded
from app.storage.group_commit import Journal
from app.storage.migrations import migrate, schema_fault
from app.storage.participants import RegisteredParticipant
from app.storage.transactions import release_leases
from holdfast.version import __version__


class UndecryptableSecretsError(Exception):
    """The database has secrets for which there is no key; the message says what to set."""


class SchemaOutdatedError(Exception):
    """The database schema doesn't match this version; the message says what to run."""


def create_app(
    settings: Settings,
    *,
    transport: httpx.AsyncBaseTransport | None = None,
    clock: Callable[[], float] = wall_s,
    follows_database: bool = True,
    open_journal: Callable[..., Journal] = Journal,
) -> FastAPI:
    """The coordinator as an ASGI application, which works while its lifespan is entered.

    `transport` carries the calls to participants, `clock` is the machine's clock (seconds since the epoch), and
    `open_journal` opens the database at a URL. Each has a default. On a database server the coordinator goes by the
    database's clock, unless `follows_database` is false.
    """
    own = not follows_database or is_embedded(settings.database_url)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        carrier = transport or transport_of(settings)
        async with running(settings, carrier, clock, open_journal, follows_machine=own) as parts:
            app.state.parts = parts
            yield

    app = FastAPI(
        title="Holdfast",
        version=__version__,
        description=openapi_document.DESCRIPTION,
        openapi_tags=openapi_document.TAGS,
        lifespan=lifespan,
        redirect_slashes=False,
        docs_url=None,  # app.docs_ui has pages that work offline
        redoc_url=None,
    )
    for router in (
        transactions.router,
        participants.router,
        admin.router,
        audit.router,
        keys.router,
        participant_secrets.router,
        health.router,
        pages.router,
    ):
        app.router.routes += router.routes  # without the layer that include_router puts around each route
    app.state.auth_mode = settings.auth_mode
    problems.install(app)
    openapi_document.install(app)
    app.add_middleware(BodyLimit, bytes_max=settings.body_max_bytes)
    app.add_middleware(ClientAddress, proxies=settings.proxies)
    app.add_middleware(HostCheck, trusted=settings.hosts)
    if settings.root_path:
        app.add_middleware(PathPrefix, prefix=settings.root_path)  # last, so that nothing comes before it
    return app


@asynccontextmanager
async def running(
    settings: Settings,
    transport: httpx.AsyncBaseTransport,
    wall: Callable[[], float],
    open_journal: Callable[..., Journal],
    *,
    follows_machine: bool,
) -> AsyncIterator[Parts]:
    """The parts of a running coordinator. On exit it stops, hands over unfinished work and closes everything."""
    embedded = is_embedded(settings.database_url)
    if embedded:
        migrate(settings.database_url)
    journal = open_journal(settings.database_url, pooled=settings.direct_database_url is not None)
    try:
        if fault := await journal.read(schema_fault):
            raise SchemaOutdatedError(fault)
        if fault := await journal.read(secrets_fault, settings.encryption):
            raise UndecryptableSecretsError(fault)
        clock = await clock_of(journal, follows_machine=follows_machine, wall=wall)
        caller = caller_of(settings, transport, clock, coordinator_id=await journal.read(find_coordinator_id))
        try:
            async with _started(settings, journal, caller, clock, wall, embedded=embedded) as parts:
                yield parts
        finally:
            await caller.close()
    finally:
        await journal.close()


@asynccontextmanager
async def _started(
    settings: Settings,
    journal: Journal,
    caller: Caller,
    clock: Clock,
    wall: Callable[[], float],
    *,
    embedded: bool,
) -> AsyncIterator[Parts]:
    notifications = Notifications(journal, alone=embedded, direct_url=settings.direct_database_url)
    parts = assemble(
        settings,
        journal,
        caller,
        clock,
        poll_s=lambda: notifications.poll_s,
        tell=notifications.tell,
        alone=embedded,
        forgotten=await find_forgotten(journal, settings.restored_from, clock),
    )
    notifications.subscribe(parts.coordinator.runs.heard)
    if embedded:  # only this process uses the file, so earlier holders of leases are dead
        await journal.write(release_leases, clock())
    for name, body in settings.participants.items():
        await parts.registry.put(RegisteredParticipant(name=name, **body.members), headers=body.header_values)
    await parts.registry.refresh()
    if (first := settings.first_key) is not None:
        await parts.keys.bootstrap(first)
    sync = clock_sync_of(parts, clock, wall)
    recovery = recovery_of(parts)
    retention = retention_of(parts, sync)
    audit_retention = AuditRetention(journal=journal, retention_s=settings.audit_days * DAY_S, check_clock=sync.check)
    inbox = inbox_of(parts, poll_s=lambda: notifications.poll_s)
    for service in (sync, notifications, recovery, retention, audit_retention):
        await service.start()
    if not embedded:
        await inbox.start()
    try:
        yield parts
    finally:
        await asyncio.gather(retention.stop(), audit_retention.stop(), recovery.stop())
        await parts.coordinator.runs.stop(settings.shutdown_timeout_s)
        await inbox.stop()
        await parts.later_writes.close()
        await notifications.stop()  # last: others are told of what ended while the coordinator stopped
        await sync.stop()


def transport_of(settings: Settings) -> Transport:
    """The transport of calls to participants, which checks each address that it connects to."""
    allowed, rules = settings.allowed, settings.address_rules

    def fault_of(url: httpx.URL, address: str) -> str | None:
        return rules.fault(address, is_loopback_listed=allowed.lists_loopback(url))

    return Transport(
        response_max_bytes=settings.response_max_bytes,
        age_max_s=settings.connection_age_max_s,
        fault_of=fault_of,
        tls=settings.call_tls,
    )


def caller_of(
    settings: Settings, transport: httpx.AsyncBaseTransport, clock: Callable[[], float], *, coordinator_id: str
) -> Caller:
    """The caller that makes calls to participants; close it after use."""
    return Caller(
        transport,
        coordinator_id=coordinator_id,
        response_max_bytes=settings.response_max_bytes,
        calls_max=settings.calls_max,
        clock=clock,
    )


def assemble(
    settings: Settings,
    journal: Journal,
    caller: Caller,
    clock: Callable[[], float],
    *,
    poll_s: Callable[[], float],
    tell: Callable[[str], None],
    alone: bool,
    forgotten: Forgotten = NOTHING,
) -> Parts:
    """The parts of a coordinator, not started yet. `poll_s` and `tell` connect it to other replicas, if not `alone`."""
    metrics = Metrics()
    later_writes = LaterWrites(journal)
    memory = MemoryBudget(settings.memory_max_bytes)
    registry = Registry(
        journal,
        allowed=settings.allowed,
        encryption=settings.encryption,
        call_timeout_s=settings.call_timeout_s,
    )
    coordinator = Coordinator(
        journal=journal,
        caller=caller,
        registry=registry,
        policy=settings.policy,
        metrics=metrics,
        memory=memory,
        inflight_max=settings.inflight_max,
        clock=clock,
        poll_s=poll_s,
        tell=tell,
        alone=alone,
        forgotten=forgotten,
    )
    return Parts(
        coordinator_id=caller.coordinator_id,
        settings=settings,
        journal=journal,
        registry=registry,
        caller=caller,
        coordinator=coordinator,
        gate=Gate(
            mode=settings.auth_mode,
            authenticator=Authenticator(journal, later_writes, clock),
            denials=Denials(later_writes, clock),
            rate_limit=RateLimit(settings.rate_per_key, elapsed_s),
            metrics=metrics,
            public_origin=settings.public_origin,
        ),
        keys=Keys(journal, clock),
        later_writes=later_writes,
        readiness=Readiness(journal),
        upgrade=Upgrade(journal),
        metrics=metrics,
        memory=memory,
        allowed=settings.allowed,
        clock=clock,
    )


def recovery_of(parts: Parts) -> Recovery:
    """The recovery that claims due transactions for the runs of `parts`."""
    return Recovery(
        journal=parts.journal,
        runs=parts.coordinator.runs,
        registry=parts.registry,
        memory=parts.memory,
        lease_s=parts.settings.lease_s,
        clock=parts.clock,
    )


def inbox_of(parts: Parts, *, poll_s: Callable[[], float]) -> Inbox:
    """The inbox of the runs of `parts`, where other processes use the database, too."""
    return Inbox(journal=parts.journal, runs=parts.coordinator.runs, poll_s=poll_s, clock=parts.clock)


def clock_sync_of(parts: Parts, clock: Clock, wall: Callable[[], float]) -> ClockSync:
    """What has the clock of `parts` follow the database's, or the machine's, which is `wall`."""
    is_machines = isinstance(clock, MachineClock)
    ask = asks_the_machine(wall, clock.elapsed) if is_machines else asks_the_database(parts.journal, clock.elapsed)
    return ClockSync(clock=clock, ask=ask, metrics=parts.metrics, wall=wall)


def retention_of(parts: Parts, sync: ClockSync) -> Retention:
    """The retention of `parts`, which purges by what is surely the time."""
    settings = parts.settings
    directory = settings.export_directory
    return Retention(
        journal=parts.journal,
        metrics=parts.metrics,
        retention_s=settings.retention_days * DAY_S,
        export=None if directory is None else Export(directory, exported),
        clock=parts.clock,
        check_clock=sync.check,
    )
