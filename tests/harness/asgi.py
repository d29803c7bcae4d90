"""Requests straight to an ASGI application, with bytes that no client library would send.

    answer = await ask(app, "POST", "/v1/transactions", headers=[(b"prefer", b"\\xff")], body=[b"{", None])

Nothing is checked or completed on the way in, so that what the application makes of it is what is tested.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import unquote

from starlette.types import ASGIApp, Message

Header = tuple[bytes, bytes]
JSON: Final[Header] = (b"content-type", b"application/json")


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back: `headers` in lower case, a repeated one as its last value."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


async def ask(
    app: ASGIApp,
    method: str,
    target: str,
    *,
    headers: Sequence[Header] = (),
    body: Sequence[bytes | None] = (b"",),
    host: bytes | None = b"localhost",
    http_version: str = "1.1",
) -> Answer:
    """Send a request; `body` is its pieces, and None among them is a client that leaves there.

    `host` is added to the headers, unless they have one.
    """
    path, _, query = target.partition("?")
    scope: Any = {"type": "http", "asgi": {"version": "3.0"}, "http_version": http_version, "scheme": "http"}
    scope |= {"method": method, "path": unquote(path), "raw_path": path.encode(), "query_string": query.encode()}
    named = [] if host is None or any(name == b"host" for name, _ in headers) else [(b"host", host)]
    scope |= {"headers": [*named, *headers], "client": ("127.0.0.1", 1), "server": ("coordinator", 80), "root_path": ""}
    pieces = list(body)
    sent: list[Message] = []

    async def receive() -> Message:
        piece = pieces.pop(0) if pieces else None
        if piece is None:
            return {"type": "http.disconnect"}
        return {"type": "http.request", "body": piece, "more_body": bool(pieces)}

    async def send(message: Message) -> None:
        sent.append(message)

    await app(scope, receive, send)
    start, *rest = sent
    received = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in start["headers"]}
    return Answer(start["status"], received, b"".join(message.get("body", b"") for message in rest))
