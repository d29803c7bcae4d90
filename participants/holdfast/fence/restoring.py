"""Keeps the value that Try validated as JSON, and restores it for confirm and cancel without validation that can fail.

Validating the payload again could give another value (`default_factory=uuid4`) or none (`FutureDatetime`). So the
validated value is dumped by field names, and restored with the same schema minus its conditions: no limits, no
defaults, and no validators except pydantic's own. A value that isn't restored equal isn't kept. Independent of rows and
handlers.
"""

from typing import Any, Final

from pydantic import TypeAdapter, ValidationError
from pydantic_core import PydanticSerializationError, SchemaError, SchemaSerializer, SchemaValidator

from holdfast.json_text import loads, loses_digits

_FUNCTIONS: Final = frozenset({"function-after", "function-before", "function-wrap"})
_CONDITIONS: Final = frozenset(
    {
        *("gt", "ge", "lt", "le", "multiple_of", "max_digits", "decimal_places", "allow_inf_nan"),
        *("min_length", "max_length", "pattern", "now_op", "tz_constraint", "fail_fast"),
        *("strip_whitespace", "to_lower", "to_upper", "validation_alias", "serialization_alias"),
        *("serialization", "serialization_exclude", "computed_fields", "metadata"),
    }
)
_VALUES: Final = frozenset({"default", "expected", "members", "cls", "function", "config", "ref", "schema_ref"})
"""Members of a schema that don't contain a schema."""


def validate(adapter: TypeAdapter[Any], text: str) -> Any:
    """The value that `adapter` makes of JSON text. A Decimal gets each digit, unless it is strict.

    Pydantic reads the numbers of a JSON text as doubles. A strict model takes its values from nothing but JSON.
    """
    if loses_digits(text):
        try:
            return adapter.validate_python(loads(text))
        except ValidationError:
            pass
    return adapter.validate_json(text)


class Restorer:
    """Dumps and restores the validated values of one annotation."""

    def __init__(self, adapter: TypeAdapter[Any]) -> None:
        self._adapter = adapter
        self._validator: SchemaValidator | None = None
        self._serializer: SchemaSerializer | None = None
        try:
            schema = _unconditional(adapter.core_schema)
            self._validator = SchemaValidator(schema, _use_prebuilt=False)
            self._serializer = SchemaSerializer(schema, _use_prebuilt=False)
        except (SchemaError, TypeError, KeyError):  # an unsupported schema: validate again instead
            pass

    def dump(self, value: Any) -> str | None:
        """`value` as JSON from which it can be restored, or None if that is impossible."""
        if self._serializer is None:
            return None
        try:
            dumped = self._serializer.to_json(value, by_alias=False, warnings=False).decode()
        except (PydanticSerializationError, UnicodeDecodeError):
            return None
        return dumped if _equal(self._restored(dumped), value) else None

    def restore(self, dumped: str, sent: str) -> Any:
        """The value that Try validated; the result of validating `sent` again, if that is equal.

        Raises ValidationError if neither is possible because the annotation has changed.
        """
        restored = self._restored(dumped)
        try:
            again = validate(self._adapter, sent)
        except ValidationError:
            if restored is _NOTHING:
                raise
            return restored
        return again if restored is _NOTHING or _equal(again, restored) else restored

    def _restored(self, dumped: str) -> Any:
        try:
            return _NOTHING if self._validator is None else self._validator.validate_json(dumped)
        except ValidationError:
            return _NOTHING


_NOTHING: Final = object()


def _equal(one: Any, other: Any) -> bool:
    return type(one) is type(other) and bool(one == other)


def _unconditional(schema: Any) -> Any:
    """The same schema without anything that could reject, replace or rename a value that was valid."""
    if isinstance(schema, list):
        return [_unconditional(each) for each in schema]
    if isinstance(schema, tuple):
        return tuple(_unconditional(each) for each in schema)
    if not isinstance(schema, dict):
        return schema
    if schema.get("type") in _FUNCTIONS and not _is_pydantics_own(schema["function"]):
        return _unconditional(schema["schema"])
    return {
        name: member if name in _VALUES else _unconditional(member)
        for name, member in schema.items()
        if name not in _CONDITIONS or not _is_schema(schema)
    }


def _is_schema(members: dict[str, Any]) -> bool:
    """Whether these are the members of a schema and not the fields of a model, which can have any name."""
    return isinstance(members.get("type"), str)


def _is_pydantics_own(function: Any) -> bool:
    """Whether a validator belongs to one of pydantic's own types, such as `SecretStr`, and creates its values."""
    called = function["function"] if isinstance(function, dict) else function
    return str(getattr(called, "__module__", "")).split(".")[0] in ("pydantic", "pydantic_core")
