"""The service's handlers: their parameters, their payload type, and how they are called.

Reads annotations when a handler is decorated, and calls it with what it asked for. Must not know the table, the rows or
HTTP.
"""

import asyncio
import functools
import inspect
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any, Final, TypeVar, get_args, get_origin

from pydantic import TypeAdapter, ValidationError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session
from sqlalchemy.util import await_only

from holdfast.fence.awaiting import all_awaited
from holdfast.fence.groups import leaves
from holdfast.fence.restoring import Restorer, validate
from holdfast.fence.values import Value
from holdfast.hold import Hold, NotNow, Refused
from holdfast.json_text import loads
from holdfast.jsonable import jsonable
from holdfast.wire import DETAIL_CHARS_MAX, Operation

Invoke = Callable[["Handler", Value, Session, float | None], Any]
"""Calls a handler with a hold or step, the right kind of session, and a time limit if it can be enforced."""


class InvalidPayload(Exception):
    """The payload doesn't match the handler's annotation. The message quotes no values."""


class HandlerBroke(Exception):
    """A handler raised something that isn't an Exception, such as the cancellation of its own task."""

    def __init__(self, error: BaseException) -> None:
        super().__init__(f"the handler raised {type(error).__name__}")


class _Inherited:
    """Stands for a missing annotation, which means the payload type of the first handler: of try or action."""


class Handler:
    """One decorated function, which gets a `value_type`."""

    def __init__(self, function: Callable[..., Any], value_type: type[Value]) -> None:
        self.function: Final = function
        self.name: Final[str] = getattr(function, "__qualname__", repr(function))
        self.is_async: Final = _is_async(function)
        self.payload_type: Final = _payload_type(function, self.name, value_type)


class Handlers:
    """The handlers of one participant, on an `asynchronous` database or not, in the `two_step` form or not.

    They get a `value_type`. `first` is the operation whose payload the others get, and whose result is kept.
    """

    def __init__(
        self, *, asynchronous: bool, two_step: bool, first: Operation = Operation.TRY, value_type: type[Value] = Hold
    ) -> None:
        self._first = first
        self._value_type = value_type
        self._asynchronous = asynchronous
        self._two_step = two_step
        self._by_operation: dict[Operation, Handler] = {}
        self._adapters: dict[Operation, TypeAdapter[Any] | None] = {}
        self._restorer_of_first: Restorer | None = None

    def __contains__(self, operation: Operation) -> bool:
        return operation in self._by_operation

    def add(self, operation: Operation, function: Callable[..., Any]) -> None:
        """Register the handler of `operation`. Raises TypeError if it can't be one, ValueError if there is one."""
        handler = Handler(function, self._value_type)
        name = handler.name
        if operation in self._by_operation:
            raise ValueError(
                f"{name}: on_{operation} is already registered; a participant has one handler for each operation"
            )
        if handler.is_async and not self._asynchronous:
            raise TypeError(
                f"{name} is async def, but the participant's database is synchronous: use def, or an AsyncEngine"
            )
        if not handler.is_async and self._asynchronous and self._two_step:
            raise TypeError(f"{name} would block the event loop while it calls out: make it async def")
        _check_session(handler)
        self._by_operation[operation] = handler

    def parse(self, operation: Operation, payload: str, validated: str | None = None) -> Any:
        """Parse the JSON `payload` into the type that the handler of `operation` expects, as it was `validated` first.

        Raises InvalidPayload.
        """
        adapter = self._adapter_of(operation)
        if adapter is None:
            return loads(payload)
        try:
            if validated is not None and self._wanted(operation) == self._wanted(self._first):
                return self._restorer().restore(validated or payload, payload)
            return validate(adapter, payload)
        except ValidationError as error:
            raise InvalidPayload(_without_values(error)) from None

    def validated(self, payload: str) -> str | None:
        """The value that the first handler's annotation gives for `payload`, as text for `parse`.

        Empty if it equals the payload. None if there is nothing to keep: no annotation, an invalid payload, or a value
        that JSON can't represent.
        """
        adapter = self._adapter_of(self._first)
        if adapter is None:
            return None
        try:
            dumped = self._restorer().dump(validate(adapter, payload))
        except ValidationError:
            return None
        return "" if dumped == payload else dumped

    def call(
        self,
        operation: Operation,
        value: Value,
        session: Session,
        invoke: Invoke,
        *,
        timeout_s: float | None,
    ) -> Any:
        """Run the handler of `operation`, if there is one; returns the first operation's result as JSON values.

        The results of the others are ignored. An exception group of nothing but Refused and NotNow, as a
        TaskGroup raises it, counts as one of them.
        """
        handler = self._by_operation.get(operation)
        if handler is None:
            return None
        try:
            returned = invoke(handler, value, session, timeout_s)
        except ExceptionGroup as group:
            meant = _meant_by(group)
            if meant is None:
                raise
            raise meant from group
        except Exception:
            raise
        except BaseException as error:
            if ends_the_task(error):
                raise
            raise HandlerBroke(error) from error
        if inspect.isawaitable(returned):
            _discard(returned)
            raise TypeError(f"{handler.name} returned an awaitable that nobody awaits: make it async def")
        return jsonable(returned) if operation is self._first else None

    def _adapter_of(self, operation: Operation) -> TypeAdapter[Any] | None:
        if operation not in self._adapters:
            wanted = self._wanted(operation)
            self._adapters[operation] = None if wanted is Any else TypeAdapter(wanted)
        return self._adapters[operation]

    def _restorer(self) -> Restorer:
        if self._restorer_of_first is None:
            self._restorer_of_first = Restorer(TypeAdapter(self._wanted(self._first)))
        return self._restorer_of_first

    def _wanted(self, operation: Operation) -> Any:
        handler = self._by_operation.get(operation)
        wanted = _Inherited if handler is None else handler.payload_type
        if wanted is _Inherited:
            return Any if operation is self._first else self._type_of_first()
        return wanted

    def _type_of_first(self) -> Any:
        wanted = self._by_operation[self._first].payload_type
        return Any if wanted is _Inherited else wanted


def ends_the_task(error: BaseException) -> bool:
    """Whether `error` is meant to end this task, and isn't a failure of the code that it calls."""
    if isinstance(error, asyncio.CancelledError):
        try:
            task = asyncio.current_task()
        except RuntimeError:  # a worker thread, which nobody cancels
            return False
        return task is not None and task.cancelling() > 0
    return isinstance(error, KeyboardInterrupt | GeneratorExit)


def invoke_def(handler: Handler, value: Value, session: Session, timeout_s: float | None) -> Any:
    """Call a `def` handler in this thread. It can't be interrupted, so `timeout_s` is ignored."""
    return handler.function(value, session)


def invoker_for(asynchronous: AsyncSession) -> Invoke:
    """An Invoke for use in `AsyncSession.run_sync`; awaits async handlers outside its greenlet."""

    def invoke(handler: Handler, value: Value, session: Session, timeout_s: float | None) -> Any:
        if handler.is_async:
            with all_awaited(asynchronous, handler.name):
                return await_only(_within(handler.function(value, asynchronous), timeout_s))
        with _stopped_after(timeout_s):
            return handler.function(value, session)

    return invoke


async def _within(awaitable: Awaitable[Any], timeout_s: float | None) -> Any:
    async with asyncio.timeout(timeout_s):
        return await awaitable


@contextmanager
def _stopped_after(timeout_s: float | None) -> Iterator[None]:
    """Stops a `def` handler on an event loop at the next statement that it waits for."""
    timeout = asyncio.timeout(timeout_s)
    await_only(timeout.__aenter__())
    try:
        yield
    except BaseException as error:
        await_only(timeout.__aexit__(type(error), error, error.__traceback__))
        raise
    await_only(timeout.__aexit__(None, None, None))


def _meant_by(group: ExceptionGroup[Exception]) -> Refused | NotNow | None:
    """The exception that stands for a group of nothing but Refused and NotNow: the longest NotNow, or else the first.

    A single NotNow outweighs refusals, because what it interrupted may have had an effect outside, which a refused call
    hasn't.
    """
    refused: list[Refused] = []
    not_now: list[NotNow] = []
    for leaf in leaves(group):
        match leaf:
            case Refused():
                refused.append(leaf)
            case NotNow():
                not_now.append(leaf)
            case _:
                return None
    return max(not_now, key=lambda leaf: leaf.retry_after_s) if not_now else refused[0]


def _is_async(function: Callable[..., Any]) -> bool:
    inner = function
    while isinstance(inner, functools.partial):
        inner = inner.func
    return inspect.iscoroutinefunction(inner) or inspect.iscoroutinefunction(type(inner).__call__)


def _payload_type(function: Callable[..., Any], name: str, value_type: type[Value]) -> Any:
    """T of the first parameter's `Hold[T]` or `Step[T]`, or _Inherited if there is no annotation. Raises TypeError."""
    parameters = list(inspect.signature(function).parameters.values())
    try:
        inspect.signature(function).bind(object(), object())
    except TypeError:
        raise TypeError(
            f"{name} must accept two positional arguments: ({value_type.__name__.lower()}, session)"
        ) from None
    _check_dependencies(parameters, function, name)
    annotation = parameters[0].annotation
    if annotation is inspect.Parameter.empty:
        return _Inherited
    if isinstance(annotation, str):
        annotation = _evaluated(annotation, inspect.unwrap(function), name)
    if annotation is value_type or annotation is Any:
        return Any
    if get_origin(annotation) is not value_type:
        wanted = value_type.__name__
        raise TypeError(f"{name}: annotate the first parameter as {wanted} or {wanted}[...], not {annotation!r}")
    (wanted,) = get_args(annotation)
    return Any if isinstance(wanted, TypeVar) else wanted


def _check_session(handler: Handler) -> None:
    """Raise TypeError if the handler's annotation doesn't match the session that it will get."""
    parameters = list(inspect.signature(handler.function).parameters.values())
    annotation = inspect.Parameter.empty
    if len(parameters) > 1:
        annotation = _annotation_of(parameters[1], handler.function, handler.name)
    while get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    if not isinstance(annotation, type):
        return
    if handler.is_async and issubclass(annotation, Session):
        raise TypeError(
            f"{handler.name} is async def and gets an AsyncSession: annotate it as one, and await its methods"
        )
    if not handler.is_async and issubclass(annotation, AsyncSession):
        raise TypeError(f"{handler.name} is def and gets a Session, not an AsyncSession: make it async def")


def _discard(awaitable: Any) -> None:
    if inspect.iscoroutine(awaitable):
        awaitable.close()


def _check_dependencies(parameters: list[inspect.Parameter], function: Callable[..., Any], name: str) -> None:
    """Raise TypeError for a parameter that FastAPI would inject: it does so for routes, not for handlers."""
    for parameter in parameters:
        annotation = _annotation_of(parameter, function, name)
        for marker in (parameter.default, *getattr(annotation, "__metadata__", ())):
            if type(marker).__module__ == "fastapi.params":
                raise TypeError(
                    f"{name}: {type(marker).__name__}(...) of parameter {parameter.name!r} is for routes only; "
                    "a handler gets two arguments, the second is the session: call the dependency inside the handler"
                )


def _annotation_of(parameter: inspect.Parameter, function: Callable[..., Any], name: str) -> Any:
    """The annotation, evaluated if it is postponed; as it is if it is imported for type checkers only."""
    if not isinstance(parameter.annotation, str):
        return parameter.annotation
    try:
        return _evaluated(parameter.annotation, inspect.unwrap(function), name)
    except Exception:
        return parameter.annotation


def _evaluated(annotation: str, function: Callable[..., Any], name: str) -> Any:
    """Evaluate a postponed annotation in the scope in which the function was defined."""
    closure = inspect.getclosurevars(function).nonlocals if inspect.isfunction(function) else {}
    try:
        return eval(annotation, getattr(function, "__globals__", {}), dict(closure))  # noqa: S307 - the service's own annotation
    except NameError as error:
        raise TypeError(
            f"{name}: can't find {error.name!r} in the annotation {annotation!r}; define it before the handler"
        ) from None


def _without_values(error: ValidationError) -> str:
    """Describe validation errors without quoting the payload, because the text may be logged on the way."""
    wrong = error.errors(include_url=False, include_context=False, include_input=False)
    lines = (f"{'.'.join(str(part) for part in one['loc']) or 'payload'}: {one['msg']}" for one in wrong)
    return "; ".join(lines)[:DETAIL_CHARS_MAX]
