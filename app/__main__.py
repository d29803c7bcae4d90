"""python -m app serve | migrate | keys … | secrets … | --version"""

import argparse
import asyncio
import logging
import os
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import uvicorn
from fastapi import FastAPI
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from app import key_commands, secrets_command
from app.api.http_protocol import bounded
from app.auth.roles import AuthMode
from app.calling.registry import secrets_fault
from app.log_format import LogFormat, formatter_of
from app.main import create_app
from app.settings import Settings
from app.storage.coordinator_id import UrlClaim, claim_url
from app.storage.engines import is_embedded, normal_url
from app.storage.errors import DatabaseError, DatabaseUnavailableError
from app.storage.group_commit import Journal
from app.storage.migrations import FINISH_COMMAND, NotMigratedError, finish, migrate, schema_fault
from app.trust import is_loopback
from holdfast.version import __version__

if sys.platform != "win32":
    import fcntl
    import resource

log = logging.getLogger("holdfast")

DATABASE_PAUSE_S = 0.5
"""Pause between two attempts to reach the database at the start, in seconds."""
STOP_MAX_S = 8.0
"""Longest time to stop beyond HOLDFAST_SHUTDOWN_TIMEOUT_S, in seconds. Then the process ends as in a crash."""
GRACE_S = 5.0
"""Added to HOLDFAST_SHUTDOWN_TIMEOUT_S, for answers that are still being written."""


def main(arguments: list[str] | None = None) -> int:
    """Run a command and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m app", description="The Holdfast coordinator.")
    parser.add_argument("--version", action="version", version=f"holdfast {__version__}")
    commands = parser.add_subparsers(dest="command", required=True)
    serving = commands.add_parser(
        "serve", help="run the coordinator (settings: HOLDFAST_…, see docs/reference/settings.md)"
    )
    serving.add_argument(
        "--adopt", action="store_true", help="let this database serve HOLDFAST_PUBLIC_URL, although it served another"
    )
    migration = commands.add_parser("migrate", help="upgrade the database to the schema of this version")
    migration.add_argument(
        "--finish", action="store_true", help="finish the upgrade, once no process of the version before runs"
    )
    key_commands.add_to(commands)
    secrets_command.add_to(commands)
    asked = parser.parse_args(arguments)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    try:
        settings = Settings()
        _log_to_stderr(settings.log_format)
        match asked.command:
            case "migrate":
                return _migrate(settings, finishes=asked.finish)
            case "keys":
                return key_commands.run(asked, settings)
            case "secrets":
                return secrets_command.run(asked.action, settings)
            case _:
                return _serve(settings, adopts=asked.adopt)
    except ValidationError as error:
        return _fail("; ".join(_fault(each) for each in error.errors()))
    except (ValueError, NotMigratedError) as error:
        return _fail(str(error))
    except DatabaseError as error:
        return _fail(_database_advice(str(error)))
    except OSError as error:  # of the lock file; the listener's errors are handled where they occur
        return _fail(
            f"HOLDFAST_DATABASE_URL: the database can't be used ({error}); check that its folder exists and is writable"
        )


def _database_advice(error: str) -> str:
    if "unsupported startup parameter" in error:
        return (
            "HOLDFAST_DATABASE_URL: it leads to a pooler such as PgBouncer. Set HOLDFAST_DIRECT_DATABASE_URL to the "
            "URL of the same database without it"
        )
    return (
        f"HOLDFAST_DATABASE_URL: the database can't be used ({error}); check the URL, and that the database "
        "is running and admits this user"
    )


def _log_to_stderr(log_format: LogFormat) -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(formatter_of(log_format))
    logging.basicConfig(level=logging.INFO, handlers=[handler])


def _migrate(settings: Settings, *, finishes: bool) -> int:
    if finishes:
        finish(settings.unpooled_url)
        log.info("event=upgrade_finished Only this version and newer ones can run on the database now.")
    elif migrate(settings.unpooled_url):
        log.info("event=migrated")
    else:
        log.info("event=migrated Once no process of the version before runs, finish with: %s", FINISH_COMMAND)
    return 0


def _serve(settings: Settings, *, adopts: bool) -> int:
    mode = settings.auth_mode  # raises if it has to be set, before anything else happens
    try:
        listener = _bind(
            settings.host, settings.port
        )  # before touching the database, which another process may be using
    except OSError as error:
        where = f"{settings.host} port {settings.port}"
        reason = error.strerror or error
        return _fail(
            f"HOLDFAST_HOST, HOLDFAST_PORT: can't listen on {where} ({reason}); choose a free port of this machine"
        )
    with listener, _sole_use(settings.database_url) as is_sole:
        if not is_sole:
            return _fail(
                "HOLDFAST_DATABASE_URL: another coordinator uses this SQLite file; stop it, "
                "or use a database server to run several"
            )
        _say_who_may_come_in(settings, mode)
        return _serve_on(listener, settings, adopts=adopts)


def _say_who_may_come_in(settings: Settings, mode: AuthMode) -> None:
    if mode is AuthMode.NONE and not is_loopback(settings.host):
        log.warning(
            "event=exposed host=%s HOLDFAST_AUTH is none: whoever reaches this port can begin, cancel and resolve "
            "transactions. Set it to accept, hand out keys, and then to require.",
            settings.host,
        )
    elif mode is AuthMode.ACCEPT:
        log.warning(
            "event=counting_only HOLDFAST_AUTH is accept: requests without a valid key are let in. Set it to require "
            "once holdfast_requests_unauthenticated_total and holdfast_requests_forbidden_total stand still."
        )
    else:
        log.info("event=authentication mode=%s", mode)


def _serve_on(listener: socket.socket, settings: Settings, *, adopts: bool) -> int:
    _open_as_many_files_as_allowed()
    if is_embedded(settings.database_url):
        migrate(settings.database_url)
    if fault := asyncio.run(_database_fault(settings, adopts=adopts)):
        return _fail(fault)
    for name in _unknown_settings():
        log.warning(
            "event=unknown_setting name=%s There is no such setting, so it has no effect. Check its spelling.", name
        )
    app = create_app(settings)
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        http=bounded(settings.body_max_bytes),
        access_log=False,
        proxy_headers=False,  # uvicorn takes any text from loopback for an address
        log_config=None,
        lifespan="on",
        timeout_graceful_shutdown=int(settings.shutdown_timeout_s + GRACE_S),
    )
    server = _Server(config, app, settings.shutdown_timeout_s)
    server.run(sockets=[listener])
    return 0 if server.started else 1


class _Server(uvicorn.Server):
    """On SIGTERM or SIGINT, finishes the transactions in progress and still answers the clients that wait for them."""

    def __init__(self, config: uvicorn.Config, app: FastAPI, limit_s: float) -> None:
        super().__init__(config)
        self._app = app
        self._limit_s = limit_s

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """As in uvicorn, but a clean stop on request exits with 0 instead of dying from the signal."""
        with super().capture_signals():
            yield
            self._captured_signals.clear()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        for each in sockets or () if self.started else ():
            host, port = each.getsockname()[:2]
            log.info("event=serving Holdfast is running on http://%s:%d", f"[{host}]" if ":" in host else host, port)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        _end_in(self._limit_s + STOP_MAX_S)
        stopping = asyncio.create_task(self._app.state.parts.coordinator.runs.stop(self._limit_s))
        await super().shutdown(sockets)
        await stopping


def _end_in(limit_s: float) -> None:
    """End the process after this time if it is still there: a thread that waits for a dead disk can't be ended."""

    def end() -> None:
        log.warning(
            "event=stop_forced limit_s=%g Something hangs. What was in progress goes on after the next start.", limit_s
        )
        os._exit(1)

    timer = threading.Timer(limit_s, end)
    timer.daemon = True
    timer.start()


@contextmanager
def _sole_use(database_url: str) -> Iterator[bool]:
    """Whether this process has the database to itself. A SQLite file has one coordinator, because it has no leases.

    The lock is released when the process ends, however that happens. The empty lock file stays. It is beside the file
    itself, because a link is only another name for it.
    """
    if not is_embedded(database_url) or sys.platform == "win32":
        yield True
        return
    with open(f"{os.path.realpath(str(normal_url(database_url).database))}.lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True


def _unknown_settings() -> list[str]:
    known = {f"HOLDFAST_{name.upper()}" for name in Settings.model_fields}
    return sorted(name for name in os.environ if name.startswith("HOLDFAST_") and name not in known)


def _bind(host: str, port: int) -> socket.socket:
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError:
        listener.close()
        raise
    return listener


def _open_as_many_files_as_allowed() -> None:
    """Raise the limit of open files: every client and every call is a connection, and 1024 is too few."""
    if sys.platform != "win32":
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


async def _database_fault(settings: Settings, *, adopts: bool) -> str | None:
    """Why this database is not to be served, once its server can be used: both may have been started together."""
    loop = asyncio.get_running_loop()
    until = loop.time() + settings.database_wait_s
    is_told = False
    journal = Journal(settings.unpooled_url)
    try:
        while True:
            try:
                return (
                    await journal.read(schema_fault)
                    or await _url_fault(journal, settings, adopts=adopts)
                    or await journal.read(secrets_fault, settings.encryption)
                )
            except DatabaseUnavailableError as error:
                if loop.time() + DATABASE_PAUSE_S > until:
                    raise
                if not is_told:
                    why, limit_s = " ".join(str(error).split()), settings.database_wait_s
                    log.warning("event=waiting_for_database limit_s=%g It can't be used yet (%s).", limit_s, why)
                is_told = True
                await asyncio.sleep(DATABASE_PAUSE_S)
    finally:
        await journal.close()


async def _url_fault(journal: Journal, settings: Settings, *, adopts: bool) -> str | None:
    """A copy of another installation's database would confirm its transactions for real."""
    if settings.public_url is None:
        return None
    claim = UrlClaim(url=settings.public_url, adopts=adopts)
    served = await journal.write(claim_url, claim)
    if served == settings.public_url:
        return None
    return (
        f"HOLDFAST_PUBLIC_URL: this database serves {served}. If it is a copy, it would call the participants of the "
        "original. If the URL has changed, start once with: python -m app serve --adopt"
    )


def _fault(error: ErrorDetails) -> str:
    message = error["msg"].removeprefix("Value error, ")
    if not error["loc"]:
        return message
    setting, *inside = (str(part) for part in error["loc"])
    return ": ".join([f"HOLDFAST_{setting.upper()}", *inside, message])


def _fail(message: str) -> int:
    print("holdfast:", " ".join(message.split()), file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
