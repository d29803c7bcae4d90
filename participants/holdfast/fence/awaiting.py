"""Detects a missing `await` on a handler's AsyncSession: a call that isn't awaited is never sent."""

import inspect
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, Final

from sqlalchemy.ext.asyncio import AsyncSession

Started = list[tuple[str, Coroutine[Any, Any, Any]]]
"""The coroutines that a session's methods returned, with the names of the methods."""

STARTED_MAX: Final = 256
"""After this many calls, awaited ones are dropped from the list."""
_STARTED: Final = "_holdfast_started"


def remembering(session_class: type[AsyncSession]) -> type[AsyncSession]:
    """A subclass whose sessions record, within `all_awaited`, what their coroutine methods return."""
    methods = {
        name: _remembering(name, method)
        for name, method in inspect.getmembers(session_class, inspect.iscoroutinefunction)
        if not name.startswith("_")
    }
    return type(session_class.__name__, (session_class,), methods)


@contextmanager
def all_awaited(session: AsyncSession, handler_name: str) -> Iterator[None]:
    """Raise RuntimeError at the end of the block if a call on a `remembering` session was never awaited."""
    started: Started = []
    setattr(session, _STARTED, started)
    try:
        yield
        if forgotten := _not_awaited(started):
            called = ", ".join(f"session.{name}()" for name, _ in forgotten)
            raise RuntimeError(f"{handler_name} never awaited {called}, so it was not sent: add the missing await")
    finally:
        delattr(session, _STARTED)
        for _, coroutine in _not_awaited(started):
            coroutine.close()


def _remembering(name: str, method: Callable[..., Coroutine[Any, Any, Any]]) -> Callable[..., Any]:
    def call(self: AsyncSession, *arguments: Any, **options: Any) -> Coroutine[Any, Any, Any]:
        coroutine = method(self, *arguments, **options)
        started: Started | None = getattr(self, _STARTED, None)
        if started is not None:
            if len(started) >= STARTED_MAX:
                started[:] = _not_awaited(started)
            started.append((name, coroutine))
        return coroutine

    call.__name__ = name
    call.__doc__ = method.__doc__
    return call


def _not_awaited(started: Started) -> Started:
    return [one for one in started if inspect.getcoroutinestate(one[1]) == inspect.CORO_CREATED]
