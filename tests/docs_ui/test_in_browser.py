"""The pages in a real browser: they work, break no rule of their own Content-Security-Policy, and stay at home."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Browser, expect

from app.docs_ui.pages import HEADERS
from tests.harness.browser import Visit, open_page, started_browser, why_no_browser
from tests.harness.coordinator_process import CoordinatorProcess

pytestmark = pytest.mark.skipif(why_no_browser() is not None, reason=why_no_browser() or "")


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    database: Path = tmp_path_factory.mktemp("docs") / "holdfast.db"
    with CoordinatorProcess({"HOLDFAST_DATABASE_URL": f"sqlite:///{database}"}) as coordinator:
        yield coordinator.url


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with started_browser() as browser:
        yield browser


@pytest.fixture
def visit(browser: Browser) -> Iterator[Visit]:
    with open_page(browser) as visit:
        yield visit


def test_an_operation_can_be_tried(url: str, visit: Visit) -> None:
    page = visit.page
    page.goto(f"{url}/docs#/participants/listParticipants")  # a deep link opens it
    page.get_by_role("button", name="Try it out").click()
    page.get_by_role("button", name="Execute").click()
    expect(page.locator(".live-responses-table")).to_contain_text('"items": []')
    assert visit.faults(url) == []


@pytest.mark.parametrize("operation", ["transactions/beginTransaction", "participants/putParticipant"])
def test_an_operation_with_a_body_opens_without_a_complaint(url: str, visit: Visit, operation: str) -> None:
    page = visit.page
    page.goto(f"{url}/docs#/{operation}")
    expect(page.locator(".opblock-body .opblock-section-request-body")).to_be_visible()
    expect(page.locator(".opblock-body .responses-inner")).to_be_visible()
    paths = httpx.get(f"{url}/openapi.json").json()["paths"]
    expect(page.locator(".opblock")).to_have_count(sum(len(methods) for methods in paths.values()))
    assert visit.faults(url) == []


def test_the_start_page_leads_to_the_api(url: str, visit: Visit) -> None:
    visit.page.goto(f"{url}/")
    visit.page.get_by_role("link", name="/docs").click()
    expect(visit.page.locator("#swagger-ui .info")).to_contain_text("Holdfast")
    assert visit.faults(url) == []


@pytest.mark.parametrize(
    ("planted", "fault"),
    [
        ("<script>window.ran = true</script>", "violates script-src-elem: inline"),
        ('<p style="color: red">', "violates style-src-attr: inline"),
        ('<img src="http://127.0.0.1:9/pixel.png">', "violates img-src: http://127.0.0.1:9/pixel.png"),
        ('<script src="/docs/missing.js"></script>', "error: Failed to load resource"),
    ],
)
def test_a_planted_fault_is_seen(url: str, visit: Visit, planted: str, fault: str) -> None:
    body = f"<!doctype html><link rel=icon href=data:,><body>{planted}</body>"
    headers = HEADERS | {"Content-Type": "text/html"}
    visit.page.route("**/planted", lambda route: route.fulfill(body=body, headers=headers))
    visit.page.goto(f"{url}/planted")
    assert any(fault in found for found in visit.faults(url)), visit.faults(url)


def test_a_request_to_another_host_is_seen(url: str, visit: Visit) -> None:
    visit.page.route("**/*", lambda route: route.fulfill(body="", headers={"Content-Type": "text/html"}))
    visit.page.goto("http://cdn.example.org/")
    assert visit.faults(url) == [f"left {url}: http://cdn.example.org/"]
