"""Middleware for a coordinator that clients reach below a path of a proxy, such as /holdfast."""

from starlette.types import ASGIApp, Receive, Scope, Send


class PathPrefix:
    """Passes requests on without the prefix, whether the proxy has removed it or not; `root_path` says what it is."""

    def __init__(self, app: ASGIApp, prefix: str) -> None:
        self._app = app
        self._prefix = prefix
        self._raw_prefix = prefix.encode("ascii")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            scope["root_path"] = self._prefix
            if scope["path"].startswith(f"{self._prefix}/"):
                scope["path"] = scope["path"].removeprefix(self._prefix)
                scope["raw_path"] = scope["raw_path"].removeprefix(self._raw_prefix)
        await self._app(scope, receive, send)
