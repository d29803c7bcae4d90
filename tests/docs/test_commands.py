"""Every command of the README and of the quickstart, pasted literally in an empty home; minutes, so it is marked slow.

The checkout stands in for the repository's URL. Commands that install need the network; the others get a loopback of
their own, where the ports of the pages are free.
"""

import pytest

from tests.docs.reader import Pasted, Reader
from tests.harness.markdown import Page

pytestmark = pytest.mark.slow

EXPECTED = {
    "README.md": [
        ("make demo", ["7 of 7 stories ended as they must"]),
        ('"reference": "order-4711"', ["HTTP/1.1 201", '"phase":"confirmed"']),
        ("?reference=order-4711", ['"outcome":"confirmed"', '{"items":[],"next_cursor":null,"totals":[]}']),
        ('"answer_at": "decision"', ["HTTP/1.1 20", '"decision":"confirm"']),
        ('"participant": "seats"', ["HTTP/1.1 201", '"phase":"confirmed"', '"reservation":']),
        ("127.0.0.1:9000/void", ["HTTP/1.1 201", '"phase":"confirmed"', '"authorisation":']),
        ("8100/readyz", ['{"status":"ready"}']),
    ],
    "docs/quickstart.md": [
        ("v1/participants/wallet", ["http://127.0.0.1:8010/tcc", "http://127.0.0.1:8011/tcc"]),
        ('"id": "b-1"', ["HTTP/1.1 201", '"booking":"b-1"']),
        ('"id": "b-2"', ["HTTP/1.1 409", "insufficient funds"]),
        ("?reference=b-2", ['"outcome":"cancelled"']),
        ('"id": "b-3"', ["HTTP/1.1 201", '"booking":"b-3"']),
        ("-m pytest", ["1 passed"]),
    ],
}


@pytest.mark.parametrize("path", EXPECTED)
def test_every_command_does_what_the_page_says(path: str, reader: Reader) -> None:
    pasted = reader.read(Page(path))
    for fragment, texts in EXPECTED[path]:
        output = output_of(fragment, pasted)
        missing = [text for text in texts if text not in output]
        assert not missing, f"{fragment}: {missing} not in:\n{output}"


def output_of(fragment: str, pasted: list[Pasted]) -> str:
    (output,) = [each.output for each in pasted if fragment in each.command]
    return output
