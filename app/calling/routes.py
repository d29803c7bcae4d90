"""Whether a participant is mounted where the coordinator calls it, or whether a router says that nothing is there.

A 404 may be the participant's own word ("no such booking") or that of a router with a wrong prefix before it. It counts
as a refusal all the same (section 4); only what is said to people differs.
"""

import asyncio
from collections.abc import Collection, Mapping
from http import HTTPStatus
from typing import Final

import httpx

from app.protocol.kinds import KINDS, OPERATIONS
from holdfast.json_text import string_member
from holdfast.wire import Kind, printable, refusal_detail

_ROUTERS_SAY: Final = frozenset({HTTPStatus.NOT_FOUND, HTTPStatus.METHOD_NOT_ALLOWED})
_UNTYPED: Final = ("about:blank", "https://tools.ietf.org/", "https://www.rfc-editor.org/")
"""What the types of problems begin with that frameworks make of a bare status."""

_PLAIN: Final = frozenset({"404 page not found"})
"""What Go's router says; most others say the status in its own words, or nothing."""


def is_no_route(status: int, headers: Mapping[str, str], body: bytes) -> bool:
    """Whether this answer is a router's: 404 or 405, and neither a problem with a type nor words of its own.

    The names of `headers` are in lower case.
    """
    if status not in _ROUTERS_SAY:
        return False
    media_type = headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type == "text/html":
        return True
    phrase = HTTPStatus(status).phrase.lower()
    if not media_type.endswith(("/json", "+json")):
        return refusal_detail(body).lower() in ("", phrase, f"{status} {phrase}", *_PLAIN)
    type_ = string_member(body, "type")
    if type_ is not None and not type_.startswith(_UNTYPED):
        return False
    said = [string_member(body, name) for name in ("detail", "title", "error", "message")]
    return all(text is None or text.lower() == phrase for text in said)


def no_route(status: int, url: httpx.URL) -> str:
    """What to tell people about such an answer."""
    where = f"{url.scheme}://{url.netloc.decode('ascii')}{url.path}"
    said = f"HTTP {status} {HTTPStatus(status).phrase}"
    return printable(f"{said}: there seems to be no such route: {where}; check the participant's base URL")


async def faults(
    transport: httpx.AsyncBaseTransport, base_url: str, kinds: Collection[Kind], timeout_s: float
) -> list[tuple[str, str]]:
    """What is wrong with the routes below this URL that participants of these kinds must have: operation and message.

    Asks for the OPTIONS of each (RFC 9110, 9.3.7), which calls nothing and takes at most `timeout_s` seconds.
    """
    needed = dict.fromkeys(
        operation for kind in kinds for operation in OPERATIONS[kind] if operation is not KINDS[kind].withdraw
    )
    urls = [(operation, httpx.URL(f"{base_url.rstrip('/')}/{operation}")) for operation in needed]
    found = await asyncio.gather(*(_fault(transport, url, timeout_s) for _, url in urls))
    return [(str(operation), fault) for (operation, _), fault in zip(urls, found, strict=True) if fault is not None]


async def _fault(transport: httpx.AsyncBaseTransport, url: httpx.URL, timeout_s: float) -> str | None:
    headers = {"Host": url.netloc.decode("ascii"), "Accept-Encoding": "identity", "User-Agent": "holdfast"}
    try:
        async with asyncio.timeout(timeout_s):
            response = await transport.handle_async_request(httpx.Request("OPTIONS", url, headers=headers))
            body = await response.aread()
    except TimeoutError:
        return f"no answer within {timeout_s:.3g} s"
    except httpx.TransportError as error:
        return printable(f"{type(error).__name__}: {error}")
    if response.status_code == HTTPStatus.METHOD_NOT_ALLOWED:  # the route is there, and has no OPTIONS
        return None
    return no_route(response.status_code, url) if is_no_route(response.status_code, response.headers, body) else None
