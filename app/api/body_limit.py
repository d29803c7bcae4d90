"""Middleware that refuses a request whose body is too large, or doesn't fit into memory, before a route runs.

The framework's own limit is not enough: it answers in plain text, and a route that doesn't read its body would already
have done its work. Doesn't look at what a body says.
"""

from typing import Final

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api.problems import Problem
from app.engine.memory_budget import MemoryBudget

DIGITS_MAX: Final = 20
"""No real Content-Length has more digits, and int() refuses text with thousands of them."""
SMALL_BYTES_MAX: Final = 65_536
"""Maximum size of every body that carries no payload."""
BEGIN_PATH: Final = "/v1/transactions"


class BodyLimit:
    """Passes on requests whose body is small enough, and counts the bodies of requests in progress.

    A begin may be `bytes_max` long, and must fit into the memory budget. Otherwise it is answered with the problem
    `payload-too-large` or `overloaded`. Probes, lists and commands are served even when the memory is full.
    """

    def __init__(self, app: ASGIApp, bytes_max: int) -> None:
        self._app = app
        self._bytes_max = bytes_max

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        is_begin = scope["path"] == BEGIN_PATH and scope["method"] == "POST"
        bytes_max = self._bytes_max if is_begin else min(SMALL_BYTES_MAX, self._bytes_max)
        declared = Headers(scope=scope).get("content-length", "0")
        if not declared.isdecimal() or len(declared) > DIGITS_MAX or int(declared) > bytes_max:
            return await Problem("payload-too-large").response()(scope, receive, send)
        memory: MemoryBudget = scope["app"].state.parts.memory
        if is_begin and not memory.admits(int(declared)):
            return await Problem("overloaded").response()(scope, receive, send)
        received = 0

        async def receive_limited() -> Message:
            nonlocal received
            message = await receive()
            size = len(message.get("body", b""))
            received += size
            memory.hold(size)
            if received > bytes_max:
                raise HTTPException(413)
            if is_begin and size and not memory.admits(0):
                raise HTTPException(503)
            return message

        try:
            return await self._app(scope, receive_limited, send)
        finally:
            memory.free(received)
