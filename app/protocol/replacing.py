"""`replace`: dataclasses.replace for the values of the state machine, in a fraction of the time.

Making changed copies is most of what a step costs. A frozen class can only be filled slot by slot through
`object.__setattr__`, so this one fills an instance of another class with the same slots, which isn't frozen, and turns
it into the class that was asked for. A class with `__post_init__` or without slots isn't for it.
"""

from collections.abc import Callable
from dataclasses import fields
from functools import cache
from typing import TYPE_CHECKING, Any

__all__ = ["replace"]

if TYPE_CHECKING:  # type checkers know what the changes must be by this name alone
    from dataclasses import replace
else:

    def replace(value: Any, **changes: Any) -> Any:
        """A copy of `value` with these fields changed."""
        kind = type(value)
        copy = _thaw(kind)(value)
        for name, new in changes.items():
            setattr(copy, name, new)
        copy.__class__ = kind
        return copy


@cache
def _thaw(kind: type) -> Callable[[Any], Any]:
    """What copies a value of this class into an instance of a class that has the same slots and isn't frozen."""
    names = [field.name for field in fields(kind)]
    thawed = type(kind.__name__, (), {"__slots__": names})
    assignments = "; ".join(f"copy.{name} = value.{name}" for name in names)
    written = {"thawed": thawed}
    exec(f"def thaw(value):\n    copy = thawed(); {assignments}\n    return copy", written)  # noqa: S102 - as dataclasses do
    thaw: Callable[[Any], Any] = written["thaw"]
    return thaw
