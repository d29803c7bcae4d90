"""Valid bytes, damaged: what a strategy for structures never comes to, and what a network or an attacker does."""

import itertools
from collections.abc import Sequence
from typing import Final

from hypothesis import strategies as st

PIECES: Final = [
    *(
        b"\r\n",
        b"\n",
        b"\r",
        b"\0",
        b" ",
        b"\t",
        b":",
        b";",
        b",",
        b'"',
        b"\\",
        b"\xff",
        b"\xc3(",
        b"\xed\xa0\x80",
        b"%00",
    ),
    *(
        b"0",
        b"-1",
        b"9" * 25,
        b"9" * 400,
        b"1e999",
        b"NaN",
        b"null",
        b"true",
        b"{}",
        b"[",
        b"]",
        b"{",
        b"}",
        b"\\ud800",
    ),
    *(b"0\r\n\r\n", b"Content-Length: 5\r\n", b"Transfer-Encoding: chunked\r\n", b"HTTP/1.1 100 Continue\r\n\r\n"),
    *(b"HTTP/1.1 200 OK\r\n\r\n", b"Connection: close\r\n", b"Upgrade: h2c\r\n", b"Retry-After: 1e308\r\n"),
]
_edits = st.lists(
    st.tuples(
        st.sampled_from(["insert", "replace", "delete", "repeat", "cut"]),
        st.integers(0, 2000),
        st.integers(1, 12),
        st.sampled_from(PIECES) | st.binary(max_size=6),
    ),
    max_size=5,
)


def damaged(valid: Sequence[bytes]) -> st.SearchStrategy[bytes]:
    """One of the `valid` ones, with up to five bytes or pieces inserted, replaced, taken out, repeated or cut off."""
    return st.tuples(st.sampled_from(valid), _edits).map(lambda drawn: _apply(*drawn))


def in_pieces(data: bytes, at: Sequence[int]) -> list[bytes]:
    """`data` as it may arrive: cut at these places."""
    places = [0, *sorted({place % (len(data) + 1) for place in at}), len(data)]
    return [data[start:end] for start, end in itertools.pairwise(places) if start < end]


def _apply(data: bytes, edits: Sequence[tuple[str, int, int, bytes]]) -> bytes:
    for kind, place, length, piece in edits:
        start = place % (len(data) + 1)
        end = start + length
        match kind:
            case "insert":
                data = data[:start] + piece + data[start:]
            case "replace":
                data = data[:start] + piece + data[end:]
            case "delete":
                data = data[:start] + data[end:]
            case "repeat":
                data = data[:start] + data[start:end] * 20 + data[end:]
            case _:
                data = data[:start]
    return data
