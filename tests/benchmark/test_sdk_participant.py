"""The benchmark of a participant's call measures calls that had their effect."""

import pytest

from tests.benchmark.sdk_participant import CASES, CLIENTS, measure, prepare, taken


@pytest.mark.parametrize("case", CASES)
async def test_each_case_has_its_effects(postgres_url: str, case: str) -> None:
    prepare(postgres_url)
    assert await measure(CASES[case], postgres_url, branches=CLIENTS) > 0
    assert taken(postgres_url) == 2 * (CLIENTS * 5 + CLIENTS)
