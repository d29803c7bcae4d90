"""A participant that isn't where it is called: said in words, and found when it is registered."""

from typing import Any, Final

import httpx
import pytest
from fastapi import FastAPI

from app.calling.routes import faults, is_no_route, no_route
from holdfast.wire import Answer, Kind, Operation
from tests.calling.test_caller import Answers, call, called

NO_ROUTE: Final = "there seems to be no such route: http://inventory:8001/tcc; check the participant's base URL"
PROBLEM: Final = "application/problem+json"


@pytest.mark.parametrize(
    ("status", "media_type", "body"),
    [
        (404, "application/json", b'{"detail":"Not Found"}'),  # Starlette, FastAPI
        (405, "application/json", b'{"detail":"Method Not Allowed"}'),
        (404, "text/html; charset=utf-8", b"<h1>Not Found</h1>"),  # Flask, Express, nginx
        (404, "text/plain; charset=utf-8", b"404 page not found\n"),  # Go
        (404, "", b""),
        (404, "application/json", b'{"timestamp":"2026","status":404,"error":"Not Found","path":"/x"}'),  # Spring
        (404, PROBLEM, b'{"type":"https://tools.ietf.org/html/rfc9110#section-15.5.5","title":"Not Found"}'),  # ASP.NET
        (404, PROBLEM, b'{"type":"about:blank","title":"Not Found","status":404}'),
        (404, "Application/JSON", b"{}"),
        (404, "text/plain", b"Not Found"),
        (405, "text/plain", b"405 Method Not Allowed\n"),
    ],
)
def test_a_router_says_that_there_is_no_route(status: int, media_type: str, body: bytes) -> None:
    assert is_no_route(status, {"content-type": media_type}, body)


@pytest.mark.parametrize(
    ("status", "media_type", "body"),
    [
        (404, PROBLEM, b'{"type":"/problems/no-such-hold","title":"Not Found"}'),
        (404, "application/json", b'{"type":"no-such-hold"}'),
        (404, "application/json", b'{"detail":"no such booking"}'),
        (404, "application/json", b'{"error":"Not Found","message":"no hold h-1"}'),
        (404, "text/plain", b"no such seat"),
        (404, "", b"no such seat"),
        (410, "text/html", b"Gone"),
        (400, "", b""),
        (409, PROBLEM, b'{"type":"/problems/nothing-held"}'),
    ],
)
def test_a_participant_speaks_for_itself(status: int, media_type: str, body: bytes) -> None:
    assert not is_no_route(status, {"content-type": media_type}, body)


@pytest.mark.parametrize("operation", Operation)
async def test_a_call_to_a_wrong_prefix_is_refused_and_says_so(operation: Operation) -> None:
    """It counts as any 404 does, and the history keeps what was answered."""
    answers = Answers(404, b'{"detail":"Not Found"}', **{"content-type": "application/json"})
    answered, record = await called(answers, call(operation))
    assert (answered.answer, answered.error) == (Answer.REFUSED, f"HTTP 404 Not Found: {NO_ROUTE}")
    assert (record.http_status, record.response) == (404, '{"detail":"Not Found"}')


async def test_a_refusal_in_plain_text_is_kept() -> None:
    answered, _ = await called(Answers(404, b"no such seat", **{"content-type": "text/plain"}), call(Operation.TRY))
    assert (answered.answer, answered.error) == (Answer.REFUSED, "no such seat")


async def test_what_the_participant_says_of_a_hold_is_kept() -> None:
    answers = Answers(404, b'{"detail":"no such hold"}', **{"content-type": "application/json"})
    answered, _ = await called(answers)
    assert (answered.answer, answered.error) == (Answer.REFUSED, "HTTP 404 no such hold")


def test_a_query_is_nobody_elses_business() -> None:
    assert "secret" not in no_route(404, httpx.URL("http://inventory/try?token=secret"))


# --- the check -------------------------------------------------------------------------------------------------------


def participant() -> httpx.ASGITransport:
    """One with the three routes below /tcc; being called is a failure."""
    app = FastAPI()

    async def called_by_a_check() -> None:
        raise AssertionError("a check calls nothing")

    for operation in Operation:
        app.post(f"/tcc/{operation}")(called_by_a_check)
    return httpx.ASGITransport(app)


@pytest.mark.parametrize("base_url", ["http://seats/tcc", "http://seats/tcc/"])
async def test_routes_that_are_there_pass(base_url: str) -> None:
    assert await faults(participant(), base_url, [Kind.TCC], 1.0) == []


async def test_routes_that_are_not_there_are_named() -> None:
    found = await faults(participant(), "http://seats/v1", [Kind.TCC], 1.0)
    assert [operation for operation, _ in found] == ["try", "confirm", "cancel"]
    assert found[0][1].startswith("HTTP 404 Not Found: there seems to be no such route: http://seats/v1/try")


@pytest.mark.parametrize("status", [200, 204, 401, 403, 405, 500])
async def test_any_other_answer_means_that_somebody_is_there(status: int) -> None:
    assert await faults(httpx.MockTransport(lambda _: httpx.Response(status)), "http://seats", [Kind.TCC], 1.0) == []


@pytest.mark.parametrize(
    ("error", "said"), [(httpx.ConnectError("refused"), "ConnectError: refused"), (TimeoutError(), "no answer within")]
)
async def test_a_participant_that_does_not_answer_fails(error: Exception, said: str) -> None:
    def handle(_: httpx.Request) -> Any:
        raise error

    found = await faults(httpx.MockTransport(handle), "http://seats", [Kind.TCC], 1.0)
    assert len(found) == 3
    assert all(fault.startswith(said) for _, fault in found)


async def test_each_kind_has_its_routes_and_a_pivot_may_do_without_cancel() -> None:
    found = await faults(participant(), "http://seats/v1", [Kind.COMPENSABLE, Kind.PIVOT], 1.0)
    assert [operation for operation, _ in found] == ["action", "compensation"]
