"""The connections of the client: one HTTP client for each event loop, because a connection belongs to its loop.

Must not know requests or answers.
"""

import asyncio
import ssl
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Final

import httpx


@dataclass(frozen=True, slots=True)
class _OfLoop:
    http: httpx.AsyncClient
    until_end: AsyncGenerator[None, None] | None


class Connections:
    """HTTP clients for `base_url`, which end with their event loops; or over `transport`, which the caller ends."""

    def __init__(
        self, base_url: str, transport: httpx.AsyncBaseTransport | None, tls: ssl.SSLContext | None = None
    ) -> None:
        self._base_url: Final = base_url
        self._transport: Final = transport
        self._verify: Final = True if tls is None else tls
        self._by_loop: Final[dict[asyncio.AbstractEventLoop, _OfLoop]] = {}

    async def of_this_loop(self) -> httpx.AsyncClient:
        """The HTTP client of the running event loop."""
        loop = asyncio.get_running_loop()
        found = self._by_loop.get(loop)
        if found is None:
            for ended in [known for known in self._by_loop if known.is_closed()]:
                self._by_loop.pop(ended, None)
            found = self._by_loop[loop] = await self._opened()
        return found.http

    async def close(self) -> None:
        """Close the connections of the running event loop."""
        found = self._by_loop.pop(asyncio.get_running_loop(), None)
        if found is None:
            return
        if found.until_end is not None:
            await found.until_end.aclose()
        await found.http.aclose()

    async def _opened(self) -> _OfLoop:
        none = CookieJar(
            DefaultCookiePolicy(allowed_domains=[])
        )  # a cookie that can't be sent back would break every request
        http = httpx.AsyncClient(base_url=self._base_url, transport=self._transport, cookies=none, verify=self._verify)
        if self._transport is not None:  # it may serve other loops, too
            return _OfLoop(http, None)
        until_end = _open_until_end(http)
        await anext(until_end)
        return _OfLoop(http, until_end)


def check_tls(tls: ssl.SSLContext | None, transport: httpx.AsyncBaseTransport | None) -> None:
    """Raise ValueError if both are given: it would not be clear whose TLS counts."""
    if tls is not None and transport is not None:
        raise ValueError("give tls or transport, not both: a transport has TLS of its own")


async def _open_until_end(http: httpx.AsyncClient) -> AsyncGenerator[None, None]:
    """A generator that closes `http`. `asyncio.run` closes all generators that its loop has started."""
    async with http:
        yield
