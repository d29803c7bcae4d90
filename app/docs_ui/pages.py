"""`/`, `/docs` and their files. Serves what is in static/ and vendor/ under a strict Content-Security-Policy.

Paths in the pages are relative, so that they work behind a proxy that adds a prefix. Must not import app.api.
"""

from html import escape
from pathlib import Path
from typing import Final

from fastapi import APIRouter, Request
from fastapi.responses import FileResponse, HTMLResponse, JSONResponse, Response
from starlette.exceptions import HTTPException

from app.auth.roles import AuthMode
from holdfast.version import __version__

CONTENT_SECURITY_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
HEADERS: Final = {
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}
CACHE_S: Final = 3600
"""How long a browser may keep the pages' files."""

LINKS: Final = {
    "docs": ("docs", "every route of the API, with examples to try"),
    "openapi": ("openapi.json", "the same as an OpenAPI document"),
    "transactions": ("v1/transactions", "the newest transactions"),
    "participants": ("v1/participants", "the registered participants"),
    "hung": ("v1/admin/hung", "transactions that need attention"),
    "live": ("healthz", "whether the process is alive"),
    "ready": ("readyz", "whether it can serve requests"),
    "metrics": ("metrics", "Prometheus metrics"),
}
"""Name → (path, what is there), as `/` lists them."""

NOTICES: Final = {
    AuthMode.NONE: "Authentication is off: whoever reaches this port may do everything (HOLDFAST_AUTH=none).",
    AuthMode.ACCEPT: "Keys are checked and counted, but nobody is refused yet (HOLDFAST_AUTH=accept).",
}
"""What every page says while requests without a key are let in."""

_HERE: Final = Path(__file__).parent
_STATIC, _SWAGGER_UI = _HERE / "static", _HERE / "vendor" / "swagger-ui-dist"
FILES: Final = {  # media types are fixed, because Python guesses them from tables that differ between machines
    "icon.svg": (_STATIC, "image/svg+xml"),
    "pages.css": (_STATIC, "text/css"),
    "swagger-ui-init.js": (_STATIC, "text/javascript"),
    "swagger-ui-bundle.js": (_SWAGGER_UI, "text/javascript"),
    "swagger-ui.css": (_SWAGGER_UI, "text/css"),
    "LICENSE": (_SWAGGER_UI, "text/plain"),
    "swagger-ui-bundle.js.LICENSE.txt": (_SWAGGER_UI, "text/plain"),
}
"""Name under /docs/ → folder and media type. Nothing else is served."""

router = APIRouter(include_in_schema=False)


@router.get("/")
async def start(request: Request) -> Response:
    """Where to go from here: HTML for a browser, JSON for everything else."""
    vary = {"Vary": "Accept"}
    mode: AuthMode = request.app.state.auth_mode
    if "text/html" in request.headers.get("accept", ""):
        return _page("start.html", vary, links=_link_list(), notice=_notice(mode))
    links = {name: f"{request.scope.get('root_path', '')}/{path}" for name, (path, _) in LINKS.items()}
    return JSONResponse(
        {"name": "Holdfast", "version": __version__, "authentication": mode, "links": links}, headers=vary
    )


@router.get("/docs")
async def docs(request: Request) -> Response:
    """Swagger UI, which reads /openapi.json."""
    return _page("docs.html", {}, notice=_notice(request.app.state.auth_mode))


@router.get("/docs/{name}")
async def file(name: str) -> Response:
    """One of the files that the pages need."""
    if name not in FILES:
        raise HTTPException(404)
    folder, media_type = FILES[name]
    headers = HEADERS | {"Cache-Control": f"max-age={CACHE_S}"}
    return FileResponse(folder / name, media_type=media_type, headers=headers)


def _page(name: str, headers: dict[str, str], **parts: str) -> Response:
    text = (_STATIC / name).read_text(encoding="utf-8")
    for part, value in ({"version": escape(__version__)} | parts).items():
        text = text.replace(f"{{{{ {part} }}}}", value)
    return HTMLResponse(text, headers=HEADERS | headers)


def _notice(mode: AuthMode) -> str:
    return f'<p class="notice">{NOTICES[mode]}</p>' if mode in NOTICES else ""


def _link_list() -> str:
    items = (f'<li><a href="{path}">/{path}</a> {escape(what)}</li>' for path, what in LINKS.values())
    return "\n      ".join(items)
