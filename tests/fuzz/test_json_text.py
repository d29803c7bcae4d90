"""JSON that is kept as text: Python's json and decimal modules say what it must come to."""

import json
import random
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from holdfast import json_text
from holdfast.json_text import DEPTH_MAX, ExactFloat, NotPortableError, canonical, checked, loads, same, text_of
from tests.harness.budget import TIMES

digits = st.text("0123456789", min_size=1, max_size=30)
numbers = st.builds(
    lambda sign, whole, fraction, power: sign + (whole.lstrip("0") or "0") + fraction + power,
    st.sampled_from(["", "-"]),
    digits,
    st.just("") | digits.map(lambda text: f".{text}"),
    st.just("")
    | st.builds(
        lambda e, sign, n: f"{e}{sign}{n}", st.sampled_from("eE"), st.sampled_from(["", "-", "+"]), st.integers(0, 400)
    ),
)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=10)
members = st.recursive(
    st.sampled_from(["null", "true", "false"]) | numbers | texts.map(json.dumps),
    lambda inner: (
        st.lists(inner, max_size=4).map(lambda items: "[" + " , ".join(items) + "]")
        | st.lists(st.tuples(texts, inner), max_size=4).map(
            lambda items: "{" + ",\n".join(f"{json.dumps(name)}: {value}" for name, value in items) + "}"
        )
    ),
    max_leaves=12,
)
"""JSON texts, duplicate names included."""


def exactly(text: str) -> Any:
    """What a JSON text says, with each number as a Decimal and each object as its members."""
    return json.loads(text, parse_int=Decimal, parse_float=Decimal, object_pairs_hook=_members)


def _members(pairs: list[tuple[str, Any]]) -> Any:
    unique = dict(pairs)
    return unique if len(unique) == len(pairs) else ("twice", pairs)


def without_truths(value: Any) -> Any:
    """The value with false and true told from 0 and 1."""
    if isinstance(value, bool):
        return str(value)
    if isinstance(value, dict):
        return {name: without_truths(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [without_truths(each) for each in value]
    return value


@settings(max_examples=400 * TIMES, deadline=None)
@given(members)
def test_what_is_json_is_kept_as_it_was_sent(text: str) -> None:
    assert checked(f" \n{text}\t".encode()) == text
    assert without_truths(exactly(text)) == without_truths(exactly(checked(text.encode())))


@settings(max_examples=400 * TIMES, deadline=None)
@given(st.binary(max_size=60) | members.map(str.encode))
@example(b'"\xff"')
@example(b'"\\ud800"')
@example(b'{"a": 1, "a": NaN}')
@example(b"\xef\xbb\xbf1")
@example(b"1e5")
@example(b"01")
def test_what_passes_is_json_to_everybody(body: bytes) -> None:
    try:
        text = checked(body)
    except NotPortableError:
        with pytest.raises((ValueError, RecursionError)):
            _strictly(body)
    else:
        assert without_truths(exactly(text)) == without_truths(_strictly(body))


def _strictly(body: bytes) -> Any:
    """As `exactly`, but what RFC 8259 doesn't know is an error: NaN, infinities, byte order marks, lone surrogates."""
    if body.startswith(b"\xef\xbb\xbf"):
        raise ValueError("a byte order mark")
    found = json.loads(
        body.decode(), parse_int=Decimal, parse_float=Decimal, object_pairs_hook=_members, parse_constant=_no_constant
    )
    repr(found).encode()
    json.dumps(json.loads(body), ensure_ascii=False).encode()
    return found


def _no_constant(name: str) -> Any:
    raise ValueError(name)


@settings(max_examples=400 * TIMES, deadline=None)
@given(members, members)
@example("[1, 1.0, 1e0, 10e-1]", "[1,1,1,1]")
@example("0", "-0.0")
@example("[true]", "[1]")
@example('{"a":1,"b":2}', '{"b":2.0,"a":1}')
@example('{"a":1,"a":2}', '{"a":2,"a":1}')
@example('{"a":1,"a":2}', '{"a":2}')
@example("1234567890123456.78", "1234567890123456.8")
@example("1E400", "10E399")
@example('"\\u0041"', '"A"')
def test_same_is_what_decimal_says(one: str, other: str) -> None:
    assert same(one, one)
    assert same(one, other) == (without_truths(exactly(one)) == without_truths(exactly(other)))


@settings(max_examples=300 * TIMES, deadline=None)
@given(numbers)
@example("1234567890123456.78")
@example("1E400")
@example("-0.0")
@example("9007199254740993.0")
@example("0.1234567890123456789012345678901")
def test_a_parsed_number_keeps_its_digits(number: str) -> None:
    found = loads(f"[{number}]")[0]
    assert found == json.loads(number)
    assert Decimal(str(found)) == Decimal(number)
    if isinstance(found, ExactFloat):
        assert json_text.loses_digits(number)
        assert str(found) == number


@settings(max_examples=200 * TIMES, deadline=None)
@given(st.integers(90, 110), st.integers(0, 2**32), st.booleans())
def test_depth_is_counted_outside_strings(depth: int, seed: int, deep: bool) -> None:
    draw = random.Random(seed)
    opening = [draw.choice(["[", '{"]{\\"[": ']) for _ in range(depth)]
    text = "".join(opening) + "0" + "".join("]" if each == "[" else "}" for each in reversed(opening))
    around = ", ".join([*draw.choices(['"[[["', '"\\\\"', "[[]]", '{"a": {}}', '"]\\""', "[{}, []]"], k=200), text])
    document = f"[{around}]".encode()
    levels = depth + 1
    assert json_text.nests_too_deep(document) == (levels > DEPTH_MAX)


@pytest.mark.parametrize("levels", [1, 5, 99, 100, 101, 2000, 100_000])
def test_a_hundred_levels_are_portable(levels: int) -> None:
    document = b"[" * levels + b"]" * levels
    if levels <= DEPTH_MAX:
        assert checked(document) == document.decode()
    else:
        with pytest.raises(NotPortableError, match="100 levels"):
            checked(document)


def test_thousands_of_digits_are_a_number_too() -> None:
    number = "9" * 5000
    assert checked(number.encode()) == number
    assert str(loads(number)) == number
    assert same(number, f"{number}.0")
    assert not same(number, number[:-1] + "8")
    assert same(f"1e{number}", f"1e{number}")


def test_a_canonical_form_tells_strings_from_numbers() -> None:
    assert canonical('"1e0"') != canonical("1")
    assert canonical(text_of({"b": [1], "a": None})) == canonical('{"a":null,"b":[1.0]}')


@pytest.mark.parametrize(
    ("document", "detail"),
    [
        (b'{"title": 1.0, "detail": "sold out \\u20ac", "more": {"detail": "inner"}}', "sold out €"),
        (b'{"detail": ""}', ""),
        (b'{"title": "Conflict"}', None),
        (b'{"detail": 5}', None),
        (b'{"detail": null}', None),
        (b'{"detail": "\\ud800"}', None),
        (b'["detail"]', None),
        (b'"detail"', None),
        (b'{"detail": "cut', None),
        (b"\xff", None),
        (b"", None),
    ],
)
def test_one_member_of_an_object_is_read_if_it_is_a_string(document: bytes, detail: str | None) -> None:
    assert json_text.string_member(document, "detail") == detail


@settings(max_examples=300 * TIMES, deadline=None)
@given(members)
@example('[1E400, {"a": [1234567890123456.78, -0.0]}, "1E400"]')
def test_what_was_parsed_is_written_with_every_digit(text: str) -> None:
    assume("'twice'" not in repr(exactly(text)))
    assert without_truths(exactly(text_of(loads(text)))) == without_truths(exactly(text))


def test_a_string_is_never_taken_for_a_number() -> None:
    strings = ["1E400", "\\ud8001E400", '"1E400']
    exact = ExactFloat("1E400")
    assert text_of([exact, *strings]) == f"[1E400,{text_of(strings)[1:]}"


def test_null_and_the_empty_object_are_texts_of_themselves() -> None:
    assert (text_of(None), text_of({})) == (json_text.NULL, json_text.EMPTY_OBJECT)


def test_what_is_no_json_is_told_where() -> None:
    with pytest.raises(NotPortableError, match="byte 4"):
        checked(b"[1, }")


def test_what_is_no_portable_json_parses_to_none() -> None:
    assert json_text.parsed(b'{"amount": 1234567890123456.78}') == {"amount": 1234567890123456.78}
    assert [json_text.parsed(each) for each in (b"", b"NaN", b"\xff", b"[" * 101 + b"]" * 101)] == [None] * 4
