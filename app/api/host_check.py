"""Middleware that answers only under the names that are the coordinator's: otherwise 421 (RFC 9110, 15.5.20).

Without it a web page whose name resolves to this machine (DNS rebinding) could use a coordinator on loopback, which has
no authentication by default. Doesn't look at who asks.
"""

from functools import lru_cache
from typing import Final

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from app.api.problems import Problem
from app.trust import Authority, TrustedHosts

OPEN: Final = ("/healthz", "/readyz", "/docs", "/openapi.json")
OPEN_BELOW: Final = ("/problems/", "/docs/")
"""Probes ask for an address, and documentation is nobody's secret."""

HOSTS_MAX: Final = 64
"""Hosts whose verdict is remembered: those that clients use are few."""


class HostCheck:
    """Passes on requests for a trusted host. Others are answered with the problem `untrusted-host` or `malformed`."""

    def __init__(self, app: ASGIApp, trusted: TrustedHosts) -> None:
        self._app = app
        self._trusted = trusted
        self._fault = lru_cache(HOSTS_MAX)(self._fault_of)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        problem = self._problem(scope) if scope["type"] == "http" and not is_open(scope["path"]) else None
        await (self._app if problem is None else problem.response())(scope, receive, send)

    def _problem(self, scope: Scope) -> Problem | None:
        hosts = Headers(scope=scope).getlist("host")
        if len(hosts) > 1 or (not hosts and scope["http_version"] != "1.0"):  # RFC 9112, 3.2
            return Problem("malformed", "Send one Host header.")
        fault = self._fault(hosts[0] if hosts else None)
        return None if fault is None else Problem(*fault)

    def _fault_of(self, host: str | None) -> tuple[str, str] | None:
        """The problem's slug and detail, if this is not the Host of a request to answer."""
        try:
            asked = None if host is None else Authority.parse(host)
        except ValueError:
            return "malformed", "The Host header must be a host name or an address, and perhaps a port."
        if self._trusted.trusts(asked):
            return None
        name = "A request without Host is for a host that is" if host is None else f"{host!r} is"
        return (
            "untrusted-host",
            f"{name} not among the trusted hosts ({self._trusted.text}). Use one of them, or add it to "
            "HOLDFAST_TRUSTED_HOSTS.",
        )


def is_open(path: str) -> bool:
    """Whether this path is served under any name."""
    return path in OPEN or path.startswith(OPEN_BELOW)
