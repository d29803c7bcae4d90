"""The benchmark's own checks can fail: what is not answered, not called or not kept is noticed."""

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.request import urlopen

import pytest
from sqlalchemy import text

from app.storage.tables import metadata
from tests.benchmark.contenders import Ceiling, Contender, Holdfast, Running
from tests.benchmark.databases import CheckFailed, Database
from tests.benchmark.load import Tally
from tests.benchmark.measuring import Shape, check_answers, measure
from tests.benchmark.noop import Noop, noop

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="it measures through /proc")
SHAPE = Shape(clients=4, seconds=0.3, warmup_s=0.1)


@pytest.fixture(scope="module")
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


def test_the_ceiling_makes_every_call_and_keeps_nothing(participant: Noop) -> None:
    assert measure(Ceiling(), participant, SHAPE).confirmed > 0


@pytest.mark.parametrize(("calls_made", "fault"), [(3, "must have seen"), (4, "are in the database")])
def test_a_coordinator_that_loses_a_call_or_keeps_nothing_is_noticed(
    participant: Noop, database: Database, calls_made: int, fault: str
) -> None:
    with database.engine.begin() as connection:
        metadata.create_all(connection)
    with pytest.raises(CheckFailed, match=fault):
        measure(Liar(database, calls_made), participant, SHAPE)


@pytest.mark.parametrize(("tally", "fault"), [(Tally(confirmed=5, in_window=5, errors=1), "1 errors"), (Tally(), "no")])
def test_a_wrong_answer_or_none_at_all_fails_the_round(tally: Tally, fault: str) -> None:
    with pytest.raises(CheckFailed, match=fault):
        check_answers(tally)


class Liar(Contender):
    """Says 201 and confirmed whatever it is asked, having made some of the calls and kept nothing."""

    def __init__(self, database: Database, calls_made: int) -> None:
        self.database = database
        self._calls_made = calls_made

    @contextmanager
    def start(self, participant: Noop, more: Mapping[str, str] = {}) -> Iterator[Running]:
        calls_made = self._calls_made

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["Content-Length"]))
                for _ in range(calls_made):
                    urlopen(f"{participant.url}/a/try", data=b"{}").close()
                answer = b'{"outcome":"confirmed"}'
                self.send_response(201)
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, *_: object) -> None: ...

        with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
            serving = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
            serving.start()
            try:
                yield Running([f"http://127.0.0.1:{server.server_port}"], [])
            finally:
                server.shutdown()
                serving.join()


def execute(database: Database, statement: str) -> None:
    engine = database.engine
    with engine.begin() as connection:
        connection.execute(text(statement))
    engine.dispose()
