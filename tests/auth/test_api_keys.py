"""The form of keys: what is one, what isn't, and what a key gives away."""

import re
import string

import pytest

from app.auth.api_keys import ApiKey


def test_a_key_has_the_form_of_the_contract_and_is_read_back() -> None:
    key = ApiKey.new()
    assert re.fullmatch(r"hfk_[0-9A-Za-z]{12}_[0-9A-Za-z]{38}", key.text)
    assert ApiKey.parse(key.text) == key
    assert ApiKey.new(key.id).id == key.id
    assert ApiKey.new(key.id).secret != key.secret


def test_the_checksum_is_a_crc32_in_base_62() -> None:
    """Computed apart, with Python's own big integers: 0 to 9, A to Z, a to z."""
    assert ApiKey("0" * 12, "0" * 32).text == "hfk_000000000000_" + "0" * 32 + "4KR5zv"


def test_every_single_mistake_is_seen() -> None:
    text = ApiKey("7Qm2xV9bKd4T", "abcdefghijklmnopqrstuvwxyzABCDEF").text
    for position in range(len(text)):
        for other in {"0", "a", "Z", "_", " ", "é"} - {text[position]}:
            with pytest.raises(ValueError, match=r"^not an API key$"):
                ApiKey.parse(text[:position] + other + text[position + 1 :])


@pytest.mark.parametrize("text", ["", "hfk_", "x" * 10_000, "hfk_" + "a" * 12 + "_" + "b" * 38, "Bearer x", "\0"])
def test_what_is_no_key_is_none(text: str) -> None:
    with pytest.raises(ValueError, match=r"^not an API key$"):
        ApiKey.parse(text)


def test_neither_repr_nor_hash_has_the_secret() -> None:
    key = ApiKey.new()
    assert key.secret not in repr(key)
    assert set(key.secret_hash) <= set(string.hexdigits)
    assert len(key.secret_hash) == 64
    assert key.secret not in key.secret_hash
