"""A real browser: the Chromium that is installed, headless, driven by playwright, which downloads none.

    with started_browser() as browser, open_page(browser) as visit:
        visit.page.goto(f"{coordinator.url}/docs")
        assert visit.faults(coordinator.url) == []

Let no asynchronous test run while a browser is open in the same process: playwright's event loop is running then.
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

import pytest
from playwright.sync_api import Browser, Page, Request, expect, sync_playwright

NAMES: Final = ("chromium", "chromium-browser", "google-chrome")
TIMEOUT_S: Final = 60.0
_REPORT_VIOLATIONS: Final = """
    document.addEventListener("securitypolicyviolation", (event) =>
        console.error(`violates ${event.effectiveDirective}: ${event.blockedURI}`))
"""


@dataclass(kw_only=True)
class Visit:
    """A page, and what the browser has complained about and asked for since it was opened."""

    page: Page
    complaints: list[str] = field(default_factory=list)
    requested: list[str] = field(default_factory=list)

    def faults(self, origin: str) -> list[str]:
        """Errors in the console, violations of the CSP, failed requests, and requests that left `origin`."""
        ours = (f"{origin}/", "data:", "blob:")
        return self.complaints + [f"left {origin}: {url}" for url in self.requested if not url.startswith(ours)]


def why_no_browser() -> str | None:
    """Why there is no browser to test with, or None."""
    return None if _program() else "no Chromium is installed: apt-get install chromium"


@contextmanager
def started_browser() -> Iterator[Browser]:
    """A browser; skips the test where no Chromium is installed."""
    program = _program()
    if program is None:
        pytest.skip(why_no_browser() or "")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox", "--disable-gpu"])
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def open_page(browser: Browser, **options: Any) -> Iterator[Visit]:
    """An empty page with a profile of its own. `options` are those of playwright's `new_page`."""
    page = browser.new_page(reduced_motion="reduce", **options)
    page.set_default_timeout(1000 * TIMEOUT_S)
    expect.set_options(timeout=1000 * TIMEOUT_S)
    visit = Visit(page=page)
    page.on("console", lambda message: _note(visit, message.type, message.text))
    page.on("pageerror", lambda error: visit.complaints.append(f"uncaught: {error}"))
    page.on("request", lambda request: visit.requested.append(request.url))
    page.on("requestfailed", lambda request: _note_failure(visit, request))
    page.add_init_script(_REPORT_VIOLATIONS)
    try:
        yield visit
    finally:
        page.close()


def _note(visit: Visit, kind: str, text: str) -> None:
    if kind in ("error", "warning"):
        visit.complaints.append(f"{kind}: {text}")


def _note_failure(visit: Visit, request: Request) -> None:
    if request.failure != "net::ERR_ABORTED":  # given up because the page was left
        visit.complaints.append(f"failed: {request.url}: {request.failure}")


def _program() -> str | None:
    return next((path for name in NAMES if (path := shutil.which(name))), None)
