"""Keeps payloads out of the SDK's log, because the message of any exception may quote one.

A filter on the logger `holdfast` rewrites the exception of a log record: of the stack the handler's part stays, and the
types; messages are removed unless the SDK raised the exception. Database errors keep their SQLSTATE or driver code,
validation errors their types. Standard library only; must not format anything else.
"""

import logging
import traceback
from collections.abc import Iterator
from types import TracebackType
from typing import Any, Final

CHAIN_MAX: Final = 10
"""Maximum number of causes, and of members of a group, that are described."""
FRAMES_MAX: Final = 30
"""Maximum number of stack frames that are described; the innermost ones."""
LOGGER: Final = "holdfast"
_CALLS_HANDLERS: Final = "holdfast.fence.handlers"


class WithoutValues(logging.Filter):
    """Describes the exception of a record itself, so that no formatter prints its message."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Never drops a record."""
        if isinstance(record.exc_info, tuple) and record.exc_info[1] is not None:
            record.exc_text = described(record.exc_info[1])
            record.__dict__["_error"] = record.exc_info[1]  # for tests; formatters skip private members
            record.exc_info = None
        return True


def install() -> None:
    """Add the filter to the SDK's logger, once."""
    logger = logging.getLogger(LOGGER)
    if not any(isinstance(existing, WithoutValues) for existing in logger.filters):
        logger.addFilter(WithoutValues())


def described(error: BaseException) -> str:
    """Describe `error`, its causes and its members, with stacks but without messages that may quote values."""
    chain: list[BaseException] = []
    current: BaseException | None = error
    while current is not None and current not in chain and len(chain) < CHAIN_MAX:
        chain.append(current)
        current = current.__cause__ or (None if current.__suppress_context__ else current.__context__)
    return "\n\nwhich led to:\n\n".join("\n".join(_one(link, depth=0)) for link in reversed(chain))


def summary(error: BaseException) -> str:
    """Describe `error` on one line, without a message that may quote values."""
    name = f"{type(error).__module__}.{type(error).__qualname__}".removeprefix("builtins.")
    said = "; ".join(_details(error))
    return f"{name}: {said}" if said else name


def _one(error: BaseException, *, depth: int) -> Iterator[str]:
    if error.__traceback__ is not None:
        yield "Traceback (most recent call last; the SDK logs no messages of exceptions):"
        frames = traceback.format_list(traceback.extract_tb(_from_the_handler(error.__traceback__))[-FRAMES_MAX:])
        yield "".join(frames).rstrip("\n")
    yield summary(error)
    if isinstance(error, BaseExceptionGroup) and depth < CHAIN_MAX:
        for member in error.exceptions[:CHAIN_MAX]:
            for line in _one(member, depth=depth + 1):
                yield "\n".join(f"  | {part}" for part in line.splitlines())


def _from_the_handler(trace: TracebackType) -> TracebackType:
    """The stack without the SDK's way to the handler; all of it if the exception doesn't come from a handler."""
    start, current = trace, trace
    while current.tb_next is not None:
        if current.tb_frame.f_globals.get("__name__") == _CALLS_HANDLERS:
            start = current.tb_next
        current = current.tb_next
    return start


def _details(error: BaseException) -> Iterator[str]:
    if isinstance(error, BaseExceptionGroup):
        yield f"{len(error.exceptions)} exceptions"
        return
    if _raised_by_the_sdk(error.__traceback__):
        yield str(error)
        return
    driver_error = getattr(error, "orig", None)
    for one in (error, driver_error):
        for name in ("sqlstate", "sqlite_errorname"):
            if isinstance(code := getattr(one, name, None), str):
                yield code
    if isinstance(driver_error, BaseException):
        yield type(driver_error).__qualname__
        arguments = driver_error.args
        if len(arguments) > 1 and isinstance(arguments[0], int):
            yield str(arguments[0])
    if type(error).__qualname__ == "ValidationError" and callable(errors := getattr(error, "errors", None)):
        yield _kinds(errors)


def _kinds(errors: Any) -> str:
    """The types of a pydantic error. Its locations are left out, because they may quote a value."""
    try:
        found = errors(include_url=False, include_context=False, include_input=False)
        return ", ".join(sorted({str(one["type"]) for one in found}))
    except Exception:  # another library's error with the same name
        return ""


def _raised_by_the_sdk(trace: TracebackType | None) -> bool:
    """Whether the SDK raised the exception; its messages quote no values."""
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    module = "" if trace is None else str(trace.tb_frame.f_globals.get("__name__"))
    return module.startswith("holdfast.") and not module.startswith("holdfast.fence.handlers")
