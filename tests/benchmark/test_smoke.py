"""The benchmark's own checks can fail: what is not answered, not called or not kept is noticed."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import text

from tests.benchmark.contenders import Ceiling, Holdfast
from tests.benchmark.databases import CheckFailed, Database
from tests.benchmark.load import Tally
from tests.benchmark.measuring import Shape, check_answers, measure
from tests.benchmark.noop import Noop, noop

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="it measures through /proc")
SHAPE = Shape(clients=4, seconds=0.3, warmup_s=0.1)


@pytest.fixture
def participant() -> Iterator[Noop]:
    with noop(bare=True) as started:
        yield started


@pytest.fixture
def database(tmp_path: Path) -> Database:
    return Database(f"sqlite:///{tmp_path}/bench.db", settle_timeout_s=0)


def test_a_short_round_passes_and_what_is_taken_from_its_database_is_missed(
    participant: Noop, database: Database
) -> None:
    measured = measure(Holdfast(database), participant, SHAPE)
    assert measured.confirmed > 0
    assert measured.throughput_per_s > 0
    assert measured.cpu_ms is not None
    assert measured.cpu_ms > 0
    execute(database, "DELETE FROM calls WHERE id = (SELECT max(id) FROM calls)")
    with pytest.raises(CheckFailed, match="must be in the history"):
        database.check()
    execute(database, "DELETE FROM transactions WHERE id = (SELECT max(id) FROM transactions)")
    with pytest.raises(CheckFailed, match="are in the database"):
        database.check()


def test_a_participant_that_loses_calls_is_noticed(participant: Noop) -> None:
    class HalfDeaf(Noop):
        def count(self) -> int:
            return super().count() // 2

    with pytest.raises(CheckFailed, match="the participant must have seen"):
        measure(Ceiling(), HalfDeaf(participant.kind, participant.url), SHAPE)


@pytest.mark.parametrize(("tally", "fault"), [(Tally(confirmed=5, in_window=5, errors=1), "1 errors"), (Tally(), "no")])
def test_a_wrong_answer_or_none_at_all_fails_the_round(tally: Tally, fault: str) -> None:
    with pytest.raises(CheckFailed, match=fault):
        check_answers(tally)


def execute(database: Database, statement: str) -> None:
    engine = database.engine
    with engine.begin() as connection:
        connection.execute(text(statement))
    engine.dispose()
