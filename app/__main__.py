"""python -m app serve | migrate"""

import argparse
import asyncio
import ipaddress
import logging
import socket
import sys

import uvicorn
from fastapi import FastAPI
from pydantic import ValidationError
from sqlalchemy.exc import SQLAlchemyError

from app.journal import Journal, is_embedded
from app.main import create_app
from app.migrations import MIGRATE_COMMAND, migrate, schema_is_current
from app.settings import Settings

log = logging.getLogger("holdfast")

GRACE_S = 5.0
"""On top of HOLDFAST_SHUTDOWN_TIMEOUT_S, for answers that are being written."""


def main(arguments: list[str] | None = None) -> int:
    """Run a command; returns the process's exit code."""
    parser = argparse.ArgumentParser(prog="python -m app", description="The Holdfast coordinator.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("serve", help="run the coordinator (settings: HOLDFAST_…, see docs/operations.md)")
    commands.add_parser("migrate", help="bring the database to the newest schema")
    command = parser.parse_args(arguments).command
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    logging.getLogger("alembic").setLevel(logging.WARNING)
    try:
        settings = Settings()
        return _migrate(settings) if command == "migrate" else _serve(settings)
    except ValidationError as error:
        return _fail("the settings are not valid:\n" + "\n".join(_fault(each) for each in error.errors()))
    except ValueError as error:
        return _fail(str(error))
    except SQLAlchemyError as error:
        return _fail(f"the database can't be used ({type(error).__name__}: {error.__cause__ or error})")


def _migrate(settings: Settings) -> int:
    migrate(settings.database_url)
    log.info("event=migrated")
    return 0


def _serve(settings: Settings) -> int:
    if not is_embedded(settings.database_url) and not asyncio.run(_is_current(settings)):
        return _fail(f"the database needs a migration; run: {MIGRATE_COMMAND}")
    if not _is_loopback(settings.host):
        log.warning(
            "event=exposed host=%s Holdfast has no authentication yet: whoever reaches this port can begin, "
            "cancel and resolve transactions. Keep it on a private network.",
            settings.host,
        )
    app = create_app(settings)
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        access_log=False,
        log_config=None,
        lifespan="on",
        timeout_graceful_shutdown=int(settings.shutdown_timeout_s + GRACE_S),
    )
    server = _Server(config, app, settings.shutdown_timeout_s)
    server.run()
    return 0 if server.started else 1


class _Server(uvicorn.Server):
    """On SIGTERM and SIGINT the coordinator ends what is under way while clients that wait for it are still served."""

    def __init__(self, config: uvicorn.Config, app: FastAPI, limit_s: float) -> None:
        super().__init__(config)
        self._app = app
        self._limit_s = limit_s

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        stopping = asyncio.create_task(self._app.state.parts.coordinator.stop(self._limit_s))
        await super().shutdown(sockets)
        await stopping


async def _is_current(settings: Settings) -> bool:
    journal = Journal(settings.database_url)
    try:
        return await journal.read(schema_is_current)
    finally:
        await journal.close()


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _fault(error: object) -> str:
    assert isinstance(error, dict)
    name = "HOLDFAST_" + "_".join(str(part) for part in error["loc"]).upper() if error["loc"] else ""
    return f"  {name} {error['msg']}".rstrip()


def _fail(message: str) -> int:
    print(f"holdfast: {message}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
