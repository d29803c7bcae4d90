"""JSON that travels: checked once, in native code, and kept as the text that was sent.

A number keeps each of its digits as long as nobody parses it. Parsing (`loads`) is for handlers, and for comparing two
texts that differ; a coordinator does neither on its event loop. No I/O and no knowledge of what a text is for.
"""

import json
import re
from array import array
from itertools import accumulate
from typing import Any, Final, NewType

import msgspec

JsonText = NewType("JsonText", str)
"""One JSON value (RFC 8259) that has passed `checked`."""

NULL: Final = JsonText("null")
EMPTY_OBJECT: Final = JsonText("{}")

DEPTH_MAX: Final = 100
"""Maximum nesting depth of payloads and results."""


class NotPortableError(ValueError):
    """A text isn't JSON that every service and every database can carry; the message says what is wrong."""


class ExactFloat(float):
    """A float that remembers the text that it was read from, so that `Decimal(str(number))` has every digit."""

    text: str

    def __new__(cls, text: str) -> "ExactFloat":
        number = super().__new__(cls, text)
        number.text = text
        return number

    def __str__(self) -> str:
        return self.text

    def __reduce__(self) -> tuple[type["ExactFloat"], tuple[str]]:
        return ExactFloat, (self.text,)


def text_of(value: Any) -> JsonText:
    """The JSON text of a value that consists of JSON's own types; an ExactFloat is written as it was read.

    Raises ValueError for NaN and infinities.
    """
    marked = _with_marks(value)
    text = json.dumps(marked, separators=(",", ":"), allow_nan=False)
    return JsonText(text if marked is value else _MARKED.sub(r"\1", text))


def checked(document: bytes | msgspec.Raw) -> JsonText:
    """The JSON value in `document` as text, without the blanks around it. Raises NotPortableError.

    It must be UTF-8, nest at most DEPTH_MAX levels deep, and contain no NaN, no infinity (RFC 8259, section 6) and no
    lone surrogate (section 8.2). Numbers of any size and duplicate names are carried as they are.
    """
    raw = bytes(document)
    try:
        msgspec.json.decode(raw, type=msgspec.Raw)
        text = raw.decode()
    except msgspec.DecodeError as error:
        raise NotPortableError(str(error)) from None
    except UnicodeDecodeError:
        raise NotPortableError("must be UTF-8") from None
    except RecursionError:
        raise NotPortableError(_TOO_DEEP) from None
    if nests_too_deep(raw):
        raise NotPortableError(_TOO_DEEP)
    return JsonText(text.strip(_BLANKS))


def nests_too_deep(document: bytes) -> bool:
    """Whether a JSON document nests deeper than DEPTH_MAX levels; a loop in Python would take too long."""
    if document.count(b"[") + document.count(b"{") <= DEPTH_MAX:
        return False
    kept = document.replace(b"\\\\", b"").replace(b'\\"', b"").translate(_STEPS, _NO_STEPS)
    outside_strings = b"".join(kept.replace(b'""', b"").split(b'"')[::2])
    levels = 0
    for _ in range(_ROUNDS):  # each takes the innermost level away, and most of the document with it
        levels += bool(outside_strings)
        outside_strings = outside_strings.replace(b"\x01\xff", b"")
    return levels + max(accumulate(array("b", outside_strings)), default=0) > DEPTH_MAX


def loads(text: str) -> Any:
    """Parse JSON. A number that a float can't hold becomes an ExactFloat. Raises ValueError."""
    return json.loads(text, parse_float=_fraction, parse_int=_integer)


def parsed(document: bytes) -> Any:
    """The JSON value in `document` as `loads` parses it, or None if there is none."""
    try:
        return loads(checked(document))
    except NotPortableError:
        return None


def loses_digits(text: str) -> bool:
    """Whether `text` may contain a number that a double-precision float can't hold."""
    return any(_is_inexact(number) for number in _FRACTIONS.findall(text))


def same(one: str, other: str) -> bool:
    """Whether two JSON texts are one value: the order of members, and how numbers and strings are written, don't count.

    Parses both unless they are equal, so it isn't for an event loop.
    """
    return one == other or canonical(one) == canonical(other)


def canonical(text: str) -> str:
    """A text that is equal for equal JSON values: 1 equals 1.0 and -0, no digit is lost, and duplicate names count."""
    document = json.loads(text, parse_int=_number, parse_float=_number, object_pairs_hook=_object)
    return json.dumps(document, sort_keys=True, separators=(",", ":"))


def string_member(document: bytes, name: str) -> str | None:
    """The member `name` of a JSON object if it is a string; nothing else is parsed."""
    try:
        members = msgspec.json.decode(document, type=dict[str, msgspec.Raw])
        return msgspec.json.decode(members[name], type=str) if name in members else None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def member_text(document: bytes, name: str) -> JsonText | None:
    """The member `name` of a JSON object as text, if it can be kept."""
    try:
        members = msgspec.json.decode(document, type=dict[str, msgspec.Raw])
        return checked(members[name]) if name in members else None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, NotPortableError):
        return None


_TOO_DEEP: Final = f"must nest at most {DEPTH_MAX} levels deep"
_BLANKS: Final = " \t\r\n"
_STEPS: Final = bytes.maketrans(b"[{]}", b"\x01\x01\xff\xff")
_NO_STEPS: Final = bytes(each for each in range(256) if each not in b'[{]}"')
_ROUNDS: Final = 4
_FRACTIONS: Final = re.compile(r"-?\d+(?:\.\d+(?:[eE][+-]?\d+)?|[eE][+-]?\d+)")
_SURE_DIGITS: Final = 15
"""A decimal number with at most this many digits survives in a double-precision float (IEEE 754)."""
_MARK: Final = "\ud800"
"""Marks what isn't a string in a canonical form; no JSON text that is `checked` can contain a lone surrogate."""


_MARKED: Final = re.compile(r'"\\ud800(-?\d[\d.eE+-]*)"')


def _with_marks(value: Any) -> Any:
    """The value with a marked string in the place of each ExactFloat, because `json` writes the float that it is."""
    if isinstance(value, ExactFloat):
        return _MARK + value.text
    if isinstance(value, dict):
        members = {name: _with_marks(member) for name, member in value.items()}
        return members if any(members[name] is not member for name, member in value.items()) else value
    if isinstance(value, list | tuple):
        items = [_with_marks(item) for item in value]
        return items if any(mine is not item for mine, item in zip(items, value, strict=True)) else value
    return value


def _fraction(token: str) -> float:
    return ExactFloat(token) if _is_inexact(token) else float(token)


def _integer(token: str) -> int | float:
    try:
        return int(token)
    except ValueError:  # thousands of digits: see sys.set_int_max_str_digits
        return ExactFloat(token)


def _is_inexact(token: str) -> bool:
    if len(token) <= _SURE_DIGITS and "e" not in token and "E" not in token:
        return False
    return _number(token) != _number(repr(float(token)))


def _number(token: str) -> str:
    """The number as digits and a power of ten, both without needless zeros."""
    mantissa, _, exponent = token.lower().partition("e")
    whole, _, fraction = mantissa.lstrip("-").partition(".")
    digits = (whole + fraction).lstrip("0")
    significant = digits.rstrip("0")
    if not significant:
        return f"{_MARK}0"
    try:
        power = int(exponent or 0) - len(fraction) + len(digits) - len(significant)
    except ValueError:  # an exponent of thousands of digits: equal only as written
        return _MARK + token
    return f"{_MARK}{'-' if token.startswith('-') else ''}{significant}e{power}"


def _object(members: list[tuple[str, Any]]) -> dict[str, Any]:
    unique = dict(members)
    return unique if len(unique) == len(members) else {_MARK: members}
