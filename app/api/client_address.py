"""Middleware that finds the address that a request comes from, behind the proxies that are trusted to say so.

Records name it ("operator at ..."), so it must be an address, and not what anybody writes into a header.
"""

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from app.trust import TrustedProxies


class ClientAddress:
    """Passes every request on, with the client's own address as `client`."""

    def __init__(self, app: ASGIApp, proxies: TrustedProxies) -> None:
        self._app = app
        self._proxies = proxies

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["client"]:
            peer = scope["client"][0]
            forwarded_for = ",".join(Headers(scope=scope).getlist("x-forwarded-for"))
            client = self._proxies.client(peer, forwarded_for) if forwarded_for else peer
            if client != peer:
                scope["client"] = (client, 0)
        await self._app(scope, receive, send)
