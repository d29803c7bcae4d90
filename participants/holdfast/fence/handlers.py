"""A service's three functions: what they take, which payload they want, how they are called.

Responsible for reading annotations when a handler is decorated and for calling it with what it asked for.
Must not know the table, the rows or HTTP.
"""

import asyncio
import functools
import inspect
import json
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeVar, get_args, get_origin

from pydantic import TypeAdapter, ValidationError
from pydantic_core import to_jsonable_python
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session
from sqlalchemy.util import await_only

from holdfast.hold import Hold
from holdfast.wire import DETAIL_CHARS_MAX, Operation

Invoke = Callable[["Handler", Hold[Any], Session, float | None], Any]
"""Calls a handler with a hold and the right kind of session, within so many seconds if it can."""


class InvalidPayload(Exception):
    """The payload is not what the handler's annotation asks for. The message quotes no values."""


class _Inherited:
    """The annotation of a confirm or cancel handler that has none: Try's."""


class Handler:
    """One decorated function."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function: Final = function
        self.name: Final[str] = getattr(function, "__qualname__", repr(function))
        self.is_async: Final = _is_async(function)
        self.payload_type: Final = _payload_type(function, self.name)


class Handlers:
    """The handlers of one participant. `asynchronous`: the database is; `two_step`: so are they."""

    def __init__(self, *, asynchronous: bool, two_step: bool) -> None:
        self._asynchronous = asynchronous
        self._two_step = two_step
        self._by_operation: dict[Operation, Handler] = {}
        self._adapters: dict[Operation, TypeAdapter[Any] | None] = {}

    def __contains__(self, operation: Operation) -> bool:
        return operation in self._by_operation

    def add(self, operation: Operation, function: Callable[..., Any]) -> None:
        """Take `function` for `operation`. Raises TypeError when it can't be one, ValueError on a second one."""
        handler = Handler(function)
        name = handler.name
        if operation in self._by_operation:
            raise ValueError(f"{name}: there is an on_{operation} handler already")
        if handler.is_async and not self._asynchronous:
            raise TypeError(f"{name} is async def, but the participant's database is a synchronous Engine: use def")
        if not handler.is_async and self._asynchronous and self._two_step:
            raise TypeError(f"{name} would block the event loop while it calls out: make it async def")
        self._by_operation[operation] = handler

    def parse(self, operation: Operation, payload: str) -> Any:
        """The JSON `payload` as the handler of `operation` wants it. Raises InvalidPayload."""
        if operation not in self._adapters:
            self._adapters[operation] = self._adapter(operation)
        adapter = self._adapters[operation]
        if adapter is None:
            return json.loads(payload)
        try:
            return adapter.validate_json(payload)
        except ValidationError as error:
            raise InvalidPayload(_without_values(error)) from None

    def call(
        self,
        operation: Operation,
        hold: Hold[Any],
        session: Session,
        invoke: Invoke,
        *,
        timeout_s: float | None,
    ) -> Any:
        """Run the handler of `operation`, if there is one; what it returned, as JSON values."""
        handler = self._by_operation.get(operation)
        if handler is None:
            return None
        returned = invoke(handler, hold, session, timeout_s)
        return to_jsonable_python(returned)

    def _adapter(self, operation: Operation) -> TypeAdapter[Any] | None:
        handler = self._by_operation.get(operation)
        wanted = _Inherited if handler is None else handler.payload_type
        if wanted is _Inherited:
            wanted = Any if operation is Operation.TRY else self._type_of_try()
        return None if wanted is Any else TypeAdapter(wanted)

    def _type_of_try(self) -> Any:
        wanted = self._by_operation[Operation.TRY].payload_type
        return Any if wanted is _Inherited else wanted


def invoke_def(handler: Handler, hold: Hold[Any], session: Session, timeout_s: float | None) -> Any:
    """Call a `def` handler where we are. It can't be stopped, so `timeout_s` is passed over."""
    return handler.function(hold, session)


def invoker_for(asynchronous: AsyncSession) -> Invoke:
    """Calls handlers from within `AsyncSession.run_sync`: the async ones are awaited outside of its greenlet."""

    def invoke(handler: Handler, hold: Hold[Any], session: Session, timeout_s: float | None) -> Any:
        if handler.is_async:
            return await_only(_within(handler.function(hold, asynchronous), timeout_s))
        return handler.function(hold, session)

    return invoke


async def _within(awaitable: Awaitable[Any], timeout_s: float | None) -> Any:
    async with asyncio.timeout(timeout_s):
        return await awaitable


def _is_async(function: Callable[..., Any]) -> bool:
    inner = function
    while isinstance(inner, functools.partial):
        inner = inner.func
    return inspect.iscoroutinefunction(inner) or inspect.iscoroutinefunction(type(inner).__call__)


def _payload_type(function: Callable[..., Any], name: str) -> Any:
    """T of the first parameter's `Hold[T]`; _Inherited without annotation. Raises TypeError."""
    parameters = list(inspect.signature(function).parameters.values())
    try:
        inspect.signature(function).bind(object(), object())
    except TypeError:
        raise TypeError(f"{name} must take (hold, session)") from None
    annotation = parameters[0].annotation
    if annotation is inspect.Parameter.empty:
        return _Inherited
    if isinstance(annotation, str):
        annotation = _evaluated(annotation, inspect.unwrap(function), name)
    if annotation is Hold or annotation is Any:
        return Any
    if get_origin(annotation) is not Hold:
        raise TypeError(f"{name}: annotate its first parameter as Hold or Hold[...], not {annotation!r}")
    (wanted,) = get_args(annotation)
    return Any if isinstance(wanted, TypeVar) else wanted


def _evaluated(annotation: str, function: Callable[..., Any], name: str) -> Any:
    """What a postponed annotation means where the function was defined."""
    closure = inspect.getclosurevars(function).nonlocals if inspect.isfunction(function) else {}
    try:
        return eval(annotation, getattr(function, "__globals__", {}), dict(closure))
    except NameError as error:
        raise TypeError(
            f"{name}: can't find {error.name!r} of annotation {annotation!r}; define it before the handler"
        ) from None


def _without_values(error: ValidationError) -> str:
    """What is wrong with a payload, without quoting it: it may be logged by anyone on the way."""
    wrong = error.errors(include_url=False, include_context=False, include_input=False)
    lines = (f"{'.'.join(str(part) for part in one['loc']) or 'payload'}: {one['msg']}" for one in wrong)
    return "; ".join(lines)[:DETAIL_CHARS_MAX]
