"""`/` and `/docs` over HTTP: what they say, what they refer to, and how strictly they are served."""

import re
from collections.abc import AsyncIterator
from html.parser import HTMLParser
from typing import Final
from urllib.parse import urljoin

import httpx
import pytest
from starlette.requests import Request

import holdfast
from app.docs_ui import pages
from app.docs_ui.pages import FILES
from app.main import create_app
from app.settings import Settings
from tests.harness.coordinator_app import check_problem, running
from tests.harness.repository import ROOT

BROWSER: Final = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}


@pytest.fixture
async def client(sqlite_url: str) -> AsyncIterator[httpx.AsyncClient]:
    async with running(sqlite_url) as service:
        yield service.client


class Markup(HTMLParser):
    """What a page refers to, and what its Content-Security-Policy would block."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.references: list[str] = []
        self.inline: list[str] = []
        self._open = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._open = tag
        for name, value in attrs:
            if name in ("href", "src"):
                self.references.append(value or "")
            if name.startswith("on") or name == "style":
                self.inline.append(f"{tag} {name}")

    def handle_data(self, data: str) -> None:
        if self._open in ("script", "style") and data.strip():
            self.inline.append(f"{self._open} {data.strip()}")


async def test_the_start_page_names_every_place_to_go(client: httpx.AsyncClient) -> None:
    body = (await client.get("/")).json()
    assert (body["name"], body["version"]) == ("Holdfast", holdfast.__version__)
    assert {"docs", "openapi", "ready", "hung"} <= body["links"].keys()
    for path in body["links"].values():
        assert (await client.get(path)).status_code == 200, path


async def test_the_start_page_keeps_a_proxys_prefix() -> None:
    request = Request({"type": "http", "headers": [], "root_path": "/tcc", "app": create_app(Settings())})
    assert b'"docs":"/tcc/docs"' in (await pages.start(request)).body


async def test_a_browser_gets_the_start_page_as_html(client: httpx.AsyncClient) -> None:
    page, listed = await client.get("/", headers=BROWSER), await client.get("/")
    assert page.headers["content-type"].startswith("text/html")
    assert page.headers["vary"] == listed.headers["vary"] == "Accept"
    assert f"version {holdfast.__version__}" in page.text
    assert set(listed.json()["links"].values()) <= {f"/{each}" for each in Markup(page.text).references}


@pytest.mark.parametrize("path", ["/", "/docs"])
async def test_pages_refer_to_nothing_elsewhere_and_have_nothing_inline(client: httpx.AsyncClient, path: str) -> None:
    page = await client.get(path, headers=BROWSER)
    markup = Markup(page.text)
    assert markup.inline == []
    assert "{{" not in page.text
    assert len(markup.references) > 3
    for reference in markup.references:
        assert not re.match(r"\w+:|/", reference), f"{reference} does not follow a proxy's prefix"
        assert (await client.get(urljoin(path, reference))).status_code == 200, reference


def test_a_planted_fault_in_a_page_is_found() -> None:
    markup = Markup('<p onclick="f()" style="x"><script>f()</script><script src="//cdn/x.js"></script>')
    assert markup.inline == ["p onclick", "p style", "script f()"]
    assert markup.references == ["//cdn/x.js"]


@pytest.mark.parametrize("path", ["/", "/docs", *(f"/docs/{name}" for name in FILES)])
async def test_everything_is_served_strictly(client: httpx.AsyncClient, path: str) -> None:
    headers = (await client.get(path, headers=BROWSER)).headers
    policy = dict(directive.split(" ", 1) for directive in headers["content-security-policy"].split("; "))
    assert policy["default-src"] == policy["base-uri"] == policy["frame-ancestors"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert headers["x-content-type-options"] == "nosniff"


async def test_files_are_those_of_the_repository(client: httpx.AsyncClient) -> None:
    for name, (folder, media_type) in FILES.items():
        answer = await client.get(f"/docs/{name}")
        assert answer.headers["content-type"].partition(";")[0] == media_type
        assert answer.content == (folder / name).read_bytes(), name
        assert folder.is_relative_to(ROOT / "app")


@pytest.mark.parametrize("path", ["/docs/index.html", "/docs/VENDOR.json", "/docs/%2e%2e/pages.py", "/docs/", "/redoc"])
async def test_nothing_else_is_served(client: httpx.AsyncClient, path: str) -> None:
    check_problem(await client.get(path), 404, "not-found")


@pytest.mark.parametrize(("auth", "says"), [("none", "Authentication is off"), ("accept", "counted"), ("require", "")])
@pytest.mark.parametrize("path", ["/", "/docs"])
async def test_every_page_says_when_nobody_is_refused(sqlite_url: str, auth: str, says: str, path: str) -> None:
    async with running(sqlite_url, auth=auth) as service:
        page = (await service.client.get(path, headers=BROWSER)).text
        assert ('class="notice"' in page) is bool(says)
        assert says in page
        assert "{{" not in page
        assert (await service.client.get("/")).json()["authentication"] == auth
