"""Values of any type that pydantic serialises, as values of JSON's own types, with every digit of parsed numbers."""

from typing import Any

from pydantic_core import to_jsonable_python

from holdfast.json_text import ExactFloat


def jsonable(value: Any) -> Any:
    """Lists, dicts, strings, numbers, booleans and None, for `text_of`. Raises what pydantic raises for other values.

    An ExactFloat in dicts, lists and tuples stays one; in a model it is the model's own type that decides.
    """
    return _with_every_digit(value, to_jsonable_python(value))


def _with_every_digit(value: Any, plain: Any) -> Any:
    if isinstance(value, ExactFloat):
        return value
    if isinstance(value, dict):
        return {name: _with_every_digit(each, plain[name]) for (name, each) in zip(plain, value.values(), strict=True)}
    if isinstance(value, list | tuple):
        return [_with_every_digit(each, simple) for each, simple in zip(value, plain, strict=True)]
    return plain
