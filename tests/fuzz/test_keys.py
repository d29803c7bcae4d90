"""Whatever is shown for a key: 401 and the same answer each time, unless it is the valid one."""

import asyncio
from collections.abc import Iterator, Sequence

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from app.auth.api_keys import ApiKey
from tests.fuzz.mutations import damaged
from tests.harness.asgi import Answer, ask
from tests.harness.budget import TIMES
from tests.harness.coordinator_app import Service, running
from tests.harness.keys import AUTHENTICATED, FIRST

VALID = f"Bearer {FIRST.text}".encode()
SHOWN = [VALID, b"Basic YTpi", b"Bearer ", b"", f"Bearer {ApiKey('1' * 12, '2' * 32).text}".encode()]


@pytest.fixture(scope="module")
def runner() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as running_:
        yield running_


@pytest.fixture(scope="module")
def coordinator(tmp_path_factory: pytest.TempPathFactory, runner: asyncio.Runner) -> Iterator[Service]:
    context = running(f"sqlite:///{tmp_path_factory.mktemp('keys') / 'holdfast.db'}", **AUTHENTICATED)
    yield runner.run(context.__aenter__())
    runner.run(context.__aexit__(None, None, None))


@given(shown=st.lists(damaged(SHOWN), max_size=3))
@example(shown=[VALID])
@example(shown=[VALID, VALID])
@example(shown=[b"Bearer " + b"\xff" * 57])
@settings(max_examples=30 * TIMES, deadline=None)
def test_damaged_keys(coordinator: Service, runner: asyncio.Runner, shown: Sequence[bytes]) -> None:
    def answer(authorization: Sequence[bytes]) -> Answer:
        headers = [(b"authorization", each) for each in authorization]
        return runner.run(ask(coordinator.app, "GET", "/v1/admin/keys", headers=headers))

    found = answer(shown)
    if len(shown) == 1 and shown[0][:7].lower() == b"bearer " and shown[0][7:].strip() == VALID[7:]:
        assert found.status == 200
    else:
        nothing = answer([])
        assert (found.status, found.body) == (nothing.status, nothing.body)
        assert found.status == 401
