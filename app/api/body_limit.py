"""Middleware that refuses requests with too large a body before a route runs.

The framework's own limit is not enough: it answers in plain text, and a route that doesn't read its body would already
have done its work. Doesn't look at what a body says.
"""

from typing import Final

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api.problems import Problem

DIGITS_MAX: Final = 20
"""No real Content-Length has more digits, and int() refuses text with thousands of them."""


class BodyLimit:
    """Passes requests of at most `bytes_max` on, and answers others with the problem `payload-too-large`."""

    def __init__(self, app: ASGIApp, bytes_max: int) -> None:
        self._app = app
        self._bytes_max = bytes_max

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        declared = Headers(scope=scope).get("content-length", "0")
        if not declared.isdecimal() or len(declared) > DIGITS_MAX or int(declared) > self._bytes_max:
            return await Problem("payload-too-large").response()(scope, receive, send)
        received = 0

        async def receive_limited() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self._bytes_max:
                raise HTTPException(413)
            return message

        return await self._app(scope, receive_limited, send)
