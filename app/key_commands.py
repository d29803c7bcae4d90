"""python -m app keys …: API keys, directly in the database, where there is no admin's key yet, or any more."""

import argparse
import asyncio
import sys
from collections.abc import Awaitable, Callable
from typing import Any

from pydantic import ValidationError

from app.api.rendering import key_json, to_json
from app.auth.api_keys import ApiKey
from app.auth.key_request import KeyRequest
from app.auth.keys import COMMAND_LINE, Keys
from app.auth.roles import Role
from app.maintenance.clock_sync import clock_of
from app.settings import Settings
from app.storage.engines import is_embedded
from app.storage.group_commit import Journal
from app.storage.migrations import migrate, schema_fault


def add_to(commands: Any) -> None:
    """Add the command `keys` to those of the parser."""
    keys = commands.add_parser("keys", help="create, list, rotate and revoke API keys in the database")
    actions = keys.add_subparsers(dest="action", required=True)
    actions.add_parser("generate", help="print a new key for HOLDFAST_BOOTSTRAP_KEY; nothing is stored")
    creating = actions.add_parser("create", help="create a key and print it")
    creating.add_argument("--name", required=True, help="who or what uses it")
    creating.add_argument("--role", dest="roles", action="append", required=True, choices=[each.value for each in Role])
    creating.add_argument("--owner", help="whose its transactions are; defaults to the name")
    creating.add_argument("--participant", help="role participant: the participant that asks for decisions")
    creating.add_argument(
        "--allow", dest="participants", action="append", metavar="PARTICIPANT", help="may be repeated; default: any"
    )
    creating.add_argument("--endpoints", action="store_true", help="its transactions may name URLs")
    creating.add_argument("--expires-at", metavar="TIME", help="such as 2031-01-01T00:00:00Z")
    actions.add_parser("list", help="print all keys, one JSON object a line, without their secrets")
    rotating = actions.add_parser("rotate", help="print another secret for a key")
    rotating.add_argument("id")
    rotating.add_argument(
        "--previous-ttl-s", type=float, default=0.0, metavar="SECONDS", help="how long the present one stays valid"
    )
    actions.add_parser("revoke", help="end a key for good").add_argument("id")


def run(asked: argparse.Namespace, settings: Settings) -> int:
    """Carry out `keys …`: keys go to stdout, and everything else to stderr. Returns the exit code."""
    if asked.action == "generate":
        print(ApiKey.new().text)
        return 0
    if is_embedded(settings.database_url):
        migrate(settings.database_url)
    return asyncio.run(_with_keys(settings, lambda keys: _ACTIONS[asked.action](asked, keys)))


async def _with_keys(settings: Settings, action: Callable[[Keys], Awaitable[int]]) -> int:
    journal = Journal(settings.unpooled_url)
    try:
        if fault := await journal.read(schema_fault):
            return _fail(fault)
        clock = await clock_of(journal, follows_machine=is_embedded(settings.database_url))
        return await action(Keys(journal, clock))
    finally:
        await journal.close()


async def _create(asked: argparse.Namespace, keys: Keys) -> int:
    members = ("name", "roles", "owner", "participant", "participants", "endpoints", "expires_at")
    try:
        issued = await keys.create(
            KeyRequest.model_validate({name: getattr(asked, name) for name in members}), COMMAND_LINE
        )
    except ValidationError as error:
        return _fail("; ".join(each["msg"].removeprefix("Value error, ") for each in error.errors()))
    except ValueError as error:
        return _fail(str(error))
    print(issued.shown.text)
    return 0


async def _list(_asked: argparse.Namespace, keys: Keys) -> int:
    for each in await keys.list():
        print(to_json(key_json(each)).decode())
    return 0


async def _rotate(asked: argparse.Namespace, keys: Keys) -> int:
    if not 0 <= asked.previous_ttl_s < float("inf"):
        return _fail("--previous-ttl-s: must be 0 or a number of seconds")
    issued = await keys.rotate(asked.id, asked.previous_ttl_s, COMMAND_LINE)
    if issued is None:
        return _fail(f"{asked.id}: there is no such key, or it was revoked")
    print(issued.shown.text)
    return 0


async def _revoke(asked: argparse.Namespace, keys: Keys) -> int:
    if not await keys.revoke(asked.id, COMMAND_LINE):
        return _fail(f"{asked.id}: there is no such key, or it was revoked already")
    print(f"{asked.id} is revoked; running coordinators refuse it within five seconds", file=sys.stderr)
    return 0


_ACTIONS = {"create": _create, "list": _list, "rotate": _rotate, "revoke": _revoke}


def _fail(message: str) -> int:
    print(f"holdfast: {message}", file=sys.stderr)
    return 1
