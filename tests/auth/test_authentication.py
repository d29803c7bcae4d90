"""Who shows a key: look-ups are shared and remembered for a while, and one that fails refuses nobody."""

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from app.auth import authentication
from app.auth.api_keys import ApiKey
from app.auth.authentication import Authenticator, UnauthenticatedError
from app.auth.later_writes import LaterWrites
from app.storage import api_keys
from app.storage.api_keys import StoredKey
from app.storage.errors import DatabaseUnavailableError

SHOWN = ApiKey.new()
OTHER = ApiKey.new(SHOWN.id)
STORED = StoredKey(
    id=SHOWN.id, name="ada", secret_hash=SHOWN.secret_hash, roles=("viewer",), owner="ada", created_at=0.0
)


class Rows:
    """A journal with one key, or one that is out of reach. Counts."""

    def __init__(self) -> None:
        self.key: StoredKey | None = STORED
        self.reads = 0
        self.uses: list[api_keys.Use] = []
        self.gate: asyncio.Event | None = None
        self.is_away = False

    async def read(self, _function: Any, key_id: str) -> StoredKey | None:
        self.reads += 1
        if self.gate is not None:
            await self.gate.wait()
        if self.is_away:
            raise DatabaseUnavailableError("away")
        return self.key if self.key is not None and self.key.id == key_id else None

    async def write(self, _function: Any, item: api_keys.Use) -> None:
        self.uses.append(item)


class Clock:
    now = 1_000.0


@pytest.fixture
def rows() -> Rows:
    return Rows()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(authentication, "elapsed_s", lambda: clock.now)
    return clock


@pytest.fixture
def authenticator(rows: Rows, clock: Clock) -> Authenticator:
    journal: Any = rows
    return Authenticator(journal, LaterWrites(journal), lambda: clock.now)


def bearer(key: ApiKey) -> list[str]:
    return [f"Bearer {key.text}"]


async def refused(authenticator: Authenticator, *authorization: str) -> bool:
    try:
        await authenticator.authenticate(authorization)
    except UnauthenticatedError:
        return True
    return False


async def test_a_valid_key_says_who_and_what(authenticator: Authenticator) -> None:
    principal = await authenticator.authenticate(bearer(SHOWN))
    assert (principal.actor, principal.key_id, principal.owner, set(principal.roles)) == (
        *("ada", SHOWN.id, "ada"),
        {"viewer"},
    )
    assert not principal.endpoints


@pytest.mark.parametrize(
    "authorization",
    [
        [],
        [""],
        ["Bearer"],
        ["Bearer "],
        ["Basic YTpi"],
        [SHOWN.text],
        [f"Bearer {SHOWN.text[:-1]}"],
        [f"Bearer {SHOWN.text}x"],
        [f"Bearer {SHOWN.text}", f"Bearer {SHOWN.text}"],
        [f"Bearer {OTHER.text}"],
        [f"Bearer {ApiKey.new().text}"],
    ],
)
async def test_anything_else_is_refused(authenticator: Authenticator, authorization: list[str]) -> None:
    assert await refused(authenticator, *authorization)


async def test_the_scheme_is_named_in_any_case(authenticator: Authenticator) -> None:
    assert not await refused(authenticator, f"bEARER {SHOWN.text} ")


async def test_it_ends_at_its_time_and_when_it_is_revoked(
    authenticator: Authenticator, rows: Rows, clock: Clock
) -> None:
    rows.key = replace(STORED, expires_at=1_003.0)
    assert not await refused(authenticator, *bearer(SHOWN))
    clock.now = 1_003.0  # the row that was read at 1,000 is still used
    assert await refused(authenticator, *bearer(SHOWN))
    rows.key = replace(STORED, revoked_at=900.0)
    clock.now = 1_010.0  # what is still used of the row must not be older than five seconds
    assert await refused(authenticator, *bearer(SHOWN))


async def test_after_a_rotation_the_secret_before_is_valid_for_a_while(
    authenticator: Authenticator, rows: Rows, clock: Clock
) -> None:
    rows.key = replace(STORED, secret_hash=OTHER.secret_hash, previous_hash=SHOWN.secret_hash, previous_until=1_002.0)
    assert not await refused(authenticator, *bearer(SHOWN))
    assert not await refused(authenticator, *bearer(OTHER))
    clock.now = 1_002.0
    assert await refused(authenticator, *bearer(SHOWN))
    assert not await refused(authenticator, *bearer(OTHER))


async def test_a_look_up_is_shared_and_remembered_for_five_seconds(
    authenticator: Authenticator, rows: Rows, clock: Clock
) -> None:
    rows.gate = asyncio.Event()
    asking = [asyncio.create_task(authenticator.authenticate(bearer(SHOWN))) for _ in range(20)]
    await asyncio.sleep(0)
    asking[0].cancel()  # the others still get the answer
    rows.gate.set()
    found = await asyncio.gather(*asking, return_exceptions=True)
    assert [isinstance(each, BaseException) for each in found] == [True] + [False] * 19
    clock.now += authentication.CACHE_S
    await authenticator.authenticate(bearer(SHOWN))
    assert rows.reads == 1
    clock.now += 0.1
    await authenticator.authenticate(bearer(SHOWN))
    assert rows.reads == 2
    authenticator.forget(SHOWN.id)
    await authenticator.authenticate(bearer(SHOWN))
    assert rows.reads == 3


async def test_a_look_up_that_fails_is_no_refusal_and_the_next_one_is_made(
    authenticator: Authenticator, rows: Rows
) -> None:
    rows.is_away = True
    for _ in range(2):
        with pytest.raises(DatabaseUnavailableError):
            await authenticator.authenticate(bearer(SHOWN))
    rows.is_away = False
    assert not await refused(authenticator, *bearer(SHOWN))
    assert rows.reads == 3


async def test_the_last_use_is_noted_once_a_minute(authenticator: Authenticator, rows: Rows, clock: Clock) -> None:
    for later in (0.0, 10.0, 59.0, 60.0, 61.0, 121.0):
        clock.now = 1_000.0 + later
        await authenticator.authenticate(bearer(SHOWN))
        await asyncio.sleep(0)
    assert [use.at - 1_000.0 for use in rows.uses] == [0.0, 60.0, 121.0]


async def test_it_remembers_a_limited_number_of_ids(
    authenticator: Authenticator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(authentication, "CACHED_MAX", 10)
    for _ in range(50):
        assert await refused(authenticator, *bearer(ApiKey.new()))
    assert len(authenticator._cached) <= 10


async def test_what_another_replica_has_just_changed_is_not_refused(
    authenticator: Authenticator, rows: Rows, clock: Clock
) -> None:
    rows.key = None
    assert await refused(authenticator, *bearer(SHOWN))
    clock.now += 0.01
    rows.key = STORED
    assert not await refused(authenticator, *bearer(SHOWN))
    clock.now += 0.01
    rows.key = replace(STORED, secret_hash=OTHER.secret_hash)
    assert not await refused(authenticator, *bearer(OTHER))
    assert await refused(authenticator, *bearer(SHOWN))
