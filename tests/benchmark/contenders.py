"""What is measured: each contender as its users start it, on a free port, with a database of its own."""

import json
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace

import httpx
from cryptography.fernet import Fernet

from app.auth.api_keys import ApiKey
from tests.benchmark.checkout import THIS, Checkout
from tests.benchmark.databases import Database
from tests.benchmark.noop import Noop
from tests.benchmark.processes import ServerProcess


@dataclass(frozen=True)
class Running:
    """A contender at work: where its clients go, and the processes whose CPU is its own (none: it was there before)."""

    urls: list[str]
    processes: list[ServerProcess]
    driver: str = "tests.benchmark.holdfast_client"
    key: str = ""
    """The API key that its clients need."""


class Contender(ABC):
    """Started anew for each round. `database` is None when nothing is kept, or when it is somebody else's affair."""

    database: Database | None = None

    @abstractmethod
    def start(self, participant: Noop, more: Mapping[str, str] = {}) -> AbstractContextManager[Running]:
        """Serve, with these participants registered: those of `participant`, and `more` (name → base URL)."""


class Holdfast(Contender):
    """`python -m app serve`, in one process or several on one database, by the code of this checkout or another."""

    def __init__(
        self,
        database: Database,
        *,
        processes: int = 1,
        checkout: Checkout = THIS,
        driver: str = "tests.benchmark.holdfast_client",
    ) -> None:
        self.database = database
        self._processes = processes
        self._root = checkout.root
        self._driver = driver

    @contextmanager
    def start(self, participant: Noop, more: Mapping[str, str] = {}) -> Iterator[Running]:
        with self._serving(participant, more, {}) as running:
            yield running

    @contextmanager
    def _serving(self, participant: Noop, more: Mapping[str, str], settings: Mapping[str, str]) -> Iterator[Running]:
        assert self.database is not None
        environment = _settings(self.database.url, participant, more) | dict(settings)
        with ExitStack() as stack:
            served = [
                stack.enter_context(
                    ServerProcess(sys.executable, "-m", "app", "serve", environment=environment, root=self._root)
                )
                for _ in range(self._processes)
            ]
            yield Running([each.url for each in served], served, self._driver)


class KeyedHoldfast(Holdfast):
    """The same with everything that guards it: clients show keys, and calls are signed."""

    @contextmanager
    def start(self, participant: Noop, more: Mapping[str, str] = {}) -> Iterator[Running]:
        first = ApiKey.new()
        guards = {
            "HOLDFAST_AUTH": "require",
            "HOLDFAST_BOOTSTRAP_KEY": first.text,
            "HOLDFAST_RATE_PER_KEY": "0",
            "HOLDFAST_SECRETS_KEY": Fernet.generate_key().decode(),
        }
        with self._serving(participant, more, guards) as running:
            headers = {"Authorization": f"Bearer {first.text}"}
            with httpx.Client(base_url=running.urls[0], headers=headers, timeout=10.0) as http:
                key = http.post("/v1/admin/keys", json={"name": "clients", "roles": ["initiator"]})
                key.raise_for_status()
                for name in participant.participants():
                    http.post(f"/v1/admin/participants/{name}/secret").raise_for_status()
            yield replace(running, key=key.json()["key"])


class Ceiling(Contender):
    """Holdfast with persistence replaced by nothing."""

    @contextmanager
    def start(self, participant: Noop, more: Mapping[str, str] = {}) -> Iterator[Running]:
        environment = _settings("postgresql://nowhere/nothing", participant, more)
        with ServerProcess(sys.executable, "-m", "tests.benchmark.ceiling", environment=environment) as server:
            yield Running([server.url], [server])


class Textbook(Contender):
    """The coordinator that people write by hand."""

    def __init__(self, database: Database) -> None:
        self.database = database

    @contextmanager
    def start(self, participant: Noop, more: Mapping[str, str] = {}) -> Iterator[Running]:
        assert self.database is not None
        environment = {
            "TEXTBOOK_DATABASE_URL": self.database.url,
            "TEXTBOOK_PARTICIPANTS": json.dumps(participant.participants() | dict(more)),
        }
        command = (sys.executable, "-m", "uvicorn", "tests.benchmark.textbook:app", "--port", "0", "--no-access-log")
        with ServerProcess(*command, environment=environment) as server:
            yield Running([server.url], [server])


class AlreadyRunning(Contender):
    """Somebody else's coordinator that runs already; `driver` is the module that speaks its API."""

    def __init__(self, url: str, driver: str) -> None:
        self._url = url.rstrip("/")
        self._driver = driver

    @contextmanager
    def start(self, participant: Noop, more: Mapping[str, str] = {}) -> Iterator[Running]:
        yield Running([self._url], [], self._driver)


def _settings(database_url: str, participant: Noop, more: Mapping[str, str]) -> dict[str, str]:
    return {
        "HOLDFAST_DATABASE_URL": database_url,
        "HOLDFAST_PORT": "0",
        "HOLDFAST_PARTICIPANTS": json.dumps(participant.participants() | dict(more)),
    }
