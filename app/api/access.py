"""Who may use which route: each route says which roles it allows, and its requests are checked before they are read.

    @router.post("/…", openapi_extra=allows(Role.OPERATOR))

A route without a rule can't be defined. What depends on the transaction, such as whose it is, routes check themselves
and have it refused here. Keys are app.auth's.
"""

from collections.abc import Callable, Coroutine, Set
from typing import Annotated, Any, Final

from fastapi import Depends, Request
from fastapi.responses import Response
from fastapi.routing import APIRoute

from app.api.problems import Problem
from app.auth.authentication import Authenticator, UnauthenticatedError
from app.auth.denials import Denials
from app.auth.rate_limit import RateLimit
from app.auth.roles import ANYBODY, READERS, AuthMode, Principal, Role
from app.metrics import Metrics
from app.protocol.messages import Asker
from holdfast.wire import printable

ROLES: Final = "x-roles"
"""The member of an operation in the OpenAPI document that has its roles; nobody needs one where it is empty."""
SECURITY_SCHEME: Final = "apiKey"
SAFE_METHODS: Final = frozenset({"GET", "HEAD", "OPTIONS"})
_CHALLENGE: Final = {"WWW-Authenticate": "Bearer"}

Handler = Callable[[Request], Coroutine[Any, Any, Response]]


def allows(*roles: Role) -> dict[str, Any]:
    """What a route is declared with: the roles that may use it, or none for everybody, without a key."""
    names = sorted(role.value for role in roles)
    return {ROLES: names, "security": [{SECURITY_SCHEME: []}] if names else []}


READ: Final = allows(*READERS, Role.INITIATOR)
"""For reading transactions: an initiator reads its own."""


class Gate:
    """Checks requests. `public_origin` is the origin of the coordinator's own pages, if that is known."""

    def __init__(
        self,
        *,
        mode: AuthMode,
        authenticator: Authenticator,
        denials: Denials,
        rate_limit: RateLimit,
        metrics: Metrics,
        public_origin: str | None,
    ) -> None:
        self._mode = mode
        self.authenticator: Final = authenticator
        self._denials = denials
        self._rate_limit = rate_limit
        self._metrics = metrics
        self._public_origin = public_origin

    async def admit(self, request: Request, roles: Set[Role]) -> Principal:
        """Who makes this request. Raises Problem if none of these roles is theirs."""
        self._check_origin(request)
        if self._mode is AuthMode.NONE or not roles:
            return ANYBODY
        try:
            principal = await self.authenticator.authenticate(request.headers.getlist("authorization"))
        except UnauthenticatedError:
            self._metrics.unauthenticated.inc()
            if self._mode is AuthMode.ACCEPT:
                return ANYBODY
            self._note(request, ANYBODY, "no valid key")
            raise Problem("unauthenticated", headers=_CHALLENGE) from None
        assert principal.key_id is not None
        is_inquiry = Role.PARTICIPANT in roles
        if self._mode is AuthMode.REQUIRE and not is_inquiry and not self._rate_limit.admits(principal.key_id):
            raise Problem("rate-limited")
        if principal.role_for(roles) is None:
            needed = " or ".join(sorted(roles))
            self.refuse(request, principal, f"This needs a key with the role {needed}.")
        return principal

    def refuse(self, request: Request, principal: Principal, detail: str, *, problem: Problem | None = None) -> None:
        """Refuse what a key has no right to: raises Problem, unless rights are only counted as yet."""
        self._metrics.forbidden.inc()
        if self._mode is AuthMode.REQUIRE:
            self._note(request, principal, detail)
            raise problem or Problem("forbidden", detail)

    def _check_origin(self, request: Request) -> None:
        """A browser says when a page of another site makes it send a request, and nothing but a browser says so."""
        if request.method in SAFE_METHODS:
            return
        site, origin = request.headers.get("sec-fetch-site"), request.headers.get("origin")
        if site is None and origin is None:
            return
        own = self._public_origin or f"{request.url.scheme}://{request.headers.get('host', '')}"
        if (site != "same-origin") if site is not None else (origin != own):
            shown = printable(site or origin or "")[:100]
            detail = f"A page of another site ({shown}) sent this request."
            self._note(request, ANYBODY, detail)
            raise Problem("foreign-origin", detail)

    def _note(self, request: Request, principal: Principal, detail: str) -> None:
        route = request.scope.get("route")
        path = route.path_format if isinstance(route, APIRoute) else request.url.path
        asker = asker_of(request, principal, None)
        self._denials.note(principal.key_id, asker, f"{request.method} {path}"[:64], request.url.path, detail)


class GuardedRoute(APIRoute):
    """A route whose requests the gate has admitted: `request.state.principal` says who makes them."""

    def __init__(self, path: str, endpoint: Callable[..., Any], **options: Any) -> None:
        extra = options.get("openapi_extra") or {}
        assert ROLES in extra, f"{path} says which roles may use it: openapi_extra=allows(…)"
        self.roles: Final = frozenset(Role(name) for name in extra[ROLES])
        super().__init__(path, endpoint, **options)

    def get_route_handler(self) -> Handler:
        handler = self.get_admitted_handler()

        async def handle(request: Request) -> Response:
            gate: Gate = request.app.state.parts.gate
            request.state.principal = await gate.admit(request, self.roles)
            return await handler(request)

        return handle

    def get_admitted_handler(self) -> Handler:
        """What handles requests that may pass."""
        return super().get_route_handler()


async def _principal(request: Request) -> Principal:
    principal: Principal = request.state.principal
    return principal


PrincipalOf = Annotated[Principal, Depends(_principal)]


def asker_of(request: Request, principal: Principal, roles: Set[Role] | None) -> Asker:
    """Who makes this request, for the record, with the role among these that allows it."""
    role = principal.role_for(roles) if roles and principal.key_id is not None else None
    return Asker(actor=principal.actor, role=role, address=address_of(request))


def words_of(asker: Asker, who: str) -> str:
    """The same in words, as resolutions and the log have it; without a key it is some `who`."""
    name = who if asker.actor is None else f"{asker.actor} ({asker.role})"
    return f"{name} at {asker.address or 'unknown address'}"


def address_of(request: Request) -> str | None:
    """The address that a request comes from."""
    return request.client.host[:64] if request.client else None
