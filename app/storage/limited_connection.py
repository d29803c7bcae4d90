"""PostgreSQL's connections, with an end to every wait.

The server's limits end statements, but not COMMIT, and not a backend that hangs while its kernel acknowledges (a stuck
disk). Whoever gives up a wait doesn't know the result.
"""

from collections.abc import Generator
from typing import Any, TypeVar

import psycopg

from app.clock import elapsed_s

SILENCE_MAX_S: float = 15.0
"""A connection whose server sends nothing for this long, while an answer is awaited, is closed; longer than the
server's own limits."""

_Result = TypeVar("_Result")


class SilentServerError(psycopg.OperationalError):
    """The server has sent nothing for SILENCE_MAX_S. What was sent to it may have taken effect."""


class DoubtfulCommitError(psycopg.OperationalError):
    """COMMIT succeeded with a warning, such as that a standby may not have it: a failover may lose it."""


class LimitedConnection(psycopg.Connection[Any]):
    """Closes itself, and raises SilentServerError, when an answer takes too long.

    A COMMIT with a warning raises DoubtfulCommitError.
    """

    def commit(self) -> None:
        warnings: list[str] = []

        def note(notice: psycopg.errors.Diagnostic) -> None:
            if notice.severity_nonlocalized == "WARNING":
                warnings.append(notice.message_primary or "a warning")

        self.add_notice_handler(note)
        try:
            super().commit()
        finally:
            self.remove_notice_handler(note)
        if warnings:
            raise DoubtfulCommitError(f"COMMIT: {warnings[0]}")

    def wait(self, gen: Generator[Any, Any, _Result], *args: Any, **options: Any) -> _Result:
        """As the driver's, which comes back at least ten times a second."""
        try:
            return super().wait(_limited(gen), *args, **options)
        except SilentServerError:
            self.pgconn.finish()
            raise


def _limited(gen: Generator[Any, Any, _Result]) -> Generator[Any, Any, _Result]:
    """The same generator, which is told what is ready, until nothing has been for too long."""
    until = elapsed_s() + SILENCE_MAX_S
    try:
        awaited = next(gen)
        while True:
            ready = yield awaited
            if ready:
                until = elapsed_s() + SILENCE_MAX_S
            elif elapsed_s() > until:
                raise SilentServerError(f"the server has been silent for {SILENCE_MAX_S:g} s")
            awaited = gen.send(ready)
    except StopIteration as ended:
        result: _Result = ended.value
        return result
