"""How quickly a coordinator answers GET /healthz while it is loaded: what a blocked event loop shows first.

Asks from a thread of a process that has nothing else to do; ten times a second, which costs the coordinator nothing
that counts. Knows nothing about the load.
"""

import http.client
import time
from threading import Event, Thread
from typing import Final, Self
from urllib.parse import urlsplit

from tests.benchmark.databases import CheckFailed

PAUSE_S: Final = 0.1
_ANSWER_TIMEOUT_S: Final = 30.0


class HealthProbe:
    """Asks from entry to exit, at least once. Raises CheckFailed at the end when an answer was not 200."""

    def __init__(self, url: str) -> None:
        self._address = urlsplit(url).netloc
        self.latencies_s: list[float] = []
        self._fault = ""
        self._ended = Event()
        self._thread = Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        if self._fault and error is None:
            raise CheckFailed(f"GET /healthz beside the load: {self._fault}")

    def _run(self) -> None:
        connection = http.client.HTTPConnection(self._address, timeout=_ANSWER_TIMEOUT_S)
        try:
            self._ask(connection)
            while not self._ended.wait(PAUSE_S):
                self._ask(connection)
        except (OSError, http.client.HTTPException) as error:
            self._fault = f"{type(error).__name__}: {error}"
        finally:
            connection.close()

    def _ask(self, connection: http.client.HTTPConnection) -> None:
        asked_at = time.perf_counter()
        connection.request("GET", "/healthz")
        answer = connection.getresponse()
        answer.read()
        self.latencies_s.append(time.perf_counter() - asked_at)
        if answer.status != 200:
            self._fault = f"{answer.status} {answer.reason}"
