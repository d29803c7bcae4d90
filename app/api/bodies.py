"""Reads what requests carry: the body of a begin, transaction ids in paths, and cursors.

A begin is read in native code, because its payloads can be large and hostile: they stay text (json_text.py), and only
the envelope around them becomes Python objects, once its types are known to be right.
"""

import re
from typing import Any, Final

import msgspec
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError

from app.api.pagination import parse_cursor
from app.api.problems import Problem
from app.api.schemas import BeginRequest
from app.engine.errors import UnknownTransactionError
from app.protocol.transaction_id import is_id
from app.settings import BRANCHES_LIMIT
from holdfast.json_text import NotPortableError, checked

UNKNOWN_MEMBER: Final = "Unknown member; see /docs for those that there are"
_UNSET: Final = msgspec.UNSET
_Text = str | None | msgspec.UnsetType


class _Endpoints(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    try_url: str | msgspec.UnsetType = msgspec.field(default=_UNSET, name="try")
    confirm: str | msgspec.UnsetType = _UNSET
    cancel: str | msgspec.UnsetType = _UNSET
    action: str | msgspec.UnsetType = _UNSET
    compensation: str | msgspec.UnsetType = _UNSET


class _Branch(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    name: _Text = _UNSET
    participant: _Text = _UNSET
    kind: str | msgspec.UnsetType = _UNSET
    after: list[str] | msgspec.UnsetType = _UNSET
    endpoints: _Endpoints | msgspec.UnsetType | None = _UNSET
    call_timeout_s: float | msgspec.UnsetType | None = _UNSET
    payload: msgspec.Raw | msgspec.UnsetType = _UNSET


class _Begin(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    name: _Text = _UNSET
    reference: _Text = _UNSET
    timeout_s: float | msgspec.UnsetType | None = _UNSET
    try_order: str | msgspec.UnsetType = _UNSET
    undo: str | msgspec.UnsetType = _UNSET
    answer_at: str | msgspec.UnsetType = _UNSET
    branches: list[msgspec.Raw] | msgspec.UnsetType = _UNSET


_BEGIN: Final = msgspec.json.Decoder(_Begin)
_BRANCH: Final = msgspec.json.Decoder(_Branch)
_WHERE: Final = re.compile(r"(.*?)(?: - at `\$\.?([^`]*)`)?", re.DOTALL)
_UNKNOWN: Final = re.compile(r"Object contains unknown field `(.*)`", re.DOTALL)


def read_begin(body: bytes, content_type: str | None) -> BeginRequest:
    """Parse the body of a begin. Raises the same errors as FastAPI's own parsing."""
    if not body:
        raise _fault("missing", ("body",), "Field required")
    media_type = (content_type or "").partition(";")[0].strip().lower()
    if not (media_type == "application/json" or media_type.endswith("+json")):
        raise _not_json(f"Content-Type is {media_type or 'missing'}; send application/json")
    begin = _decoded(_BEGIN, body, ("body",))
    members = _members(begin)
    if begin.branches is not _UNSET:
        if len(begin.branches) > BRANCHES_LIMIT:
            many = f"{len(begin.branches)} branches given, at most {BRANCHES_LIMIT}"
            raise _fault("too_long", ("body", "branches"), many)
        members["branches"] = [_branch(raw, ("body", "branches", n)) for n, raw in enumerate(begin.branches)]
    try:
        return BeginRequest.model_validate(members).sent_as(body)
    except ValidationError as error:
        faults = error.errors(include_url=False, include_context=False, include_input=False)
        raise RequestValidationError([fault | {"loc": ("body", *fault["loc"])} for fault in faults]) from error


def known_id(transaction_id: str) -> str:
    """The id in canonical form. Raises UnknownTransactionError if it can't be one."""
    known = transaction_id.lower()
    if not is_id(known):
        raise UnknownTransactionError(transaction_id)
    return known


def read_cursor(cursor: str, *types: type) -> tuple[Any, ...]:
    """As `parse_cursor`, but raises the problem `invalid`."""
    try:
        return parse_cursor(cursor, *types)
    except ValueError as error:
        raise Problem(
            "invalid", "cursor: send the `next_cursor` of the previous page unchanged, with the same filters"
        ) from error


def _branch(raw: msgspec.Raw, at: tuple[str | int, ...]) -> dict[str, Any]:
    branch = _decoded(_BRANCH, raw, at)
    members = _members(branch)
    if isinstance(branch.endpoints, _Endpoints):
        given = _members(branch.endpoints)
        members["endpoints"] = {"try" if name == "try_url" else name: url for name, url in given.items()}
    if isinstance(branch.payload, msgspec.Raw):
        try:
            members["payload"] = checked(branch.payload)
        except NotPortableError as error:
            raise _fault("value_error", (*at, "payload"), str(error)) from error
    return members


def _members(given: msgspec.Struct) -> dict[str, Any]:
    return {name: value for name, value in msgspec.structs.asdict(given).items() if value is not _UNSET}


def _decoded(decoder: msgspec.json.Decoder[Any], text: bytes | msgspec.Raw, at: tuple[str | int, ...]) -> Any:
    try:
        return decoder.decode(text)
    except msgspec.ValidationError as error:
        raise _mistyped(str(error), at) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _not_json(str(error)) from error


def _mistyped(message: str, at: tuple[str | int, ...]) -> RequestValidationError:
    """The error that msgspec describes as `Expected …, got … - at `$.branches[0].name``."""
    found = _WHERE.fullmatch(message)
    assert found is not None
    what, path = found[1], tuple(filter(None, (found[2] or "").split(".")))
    if unknown := _UNKNOWN.fullmatch(what):
        return _fault("extra_forbidden", (*at, *path, unknown[1]), UNKNOWN_MEMBER)
    return _fault("type_error", (*at, *path), what)


def _not_json(message: str) -> RequestValidationError:
    return _fault("json_invalid", ("body",), message)


def _fault(kind: str, at: tuple[str | int, ...], message: str) -> RequestValidationError:
    return RequestValidationError([{"type": kind, "loc": at, "msg": message}])
