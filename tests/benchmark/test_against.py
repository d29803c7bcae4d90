"""Comparing two checkouts: a slower one is seen, what can't be compared says what to do, and the ratios are right."""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest

from tests.benchmark import against, large_client
from tests.benchmark.against import COMPARISONS, CannotRun, Compared, Comparison, compare, report
from tests.benchmark.checkout import THIS, BadCheckout, Checkout, open_checkout
from tests.benchmark.databases import CheckFailed, Database, Databases
from tests.benchmark.health_probe import HealthProbe
from tests.benchmark.noop import LARGE_JSON, Noop, noop
from tests.benchmark.paced_clients import PacedClients, Plan
from tests.benchmark.ratios import ratio
from tests.harness.postgres import PostgresServer
from tests.harness.repository import ROOT

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="it reads the CPU clocks of other processes")

SLOWED = """
from time import thread_time

_advance = advance


def advance(*args, **kwargs):
    until = thread_time() + 0.02
    while thread_time() < until:
        pass
    return _advance(*args, **kwargs)
"""


@pytest.fixture(scope="module")
def participant() -> Iterator[Noop]:
    with noop(bare=True) as started:
        yield started


@pytest.fixture
def databases(tmp_path: Path) -> Databases:
    """SQLite's; the server is not started."""
    folder = tmp_path / "databases"
    folder.mkdir()
    return Databases(folder, PostgresServer())


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A checkout of this code, to be changed at will."""
    for folder in ("app", "alembic", "participants"):
        shutil.copytree(ROOT / folder, tmp_path / "copy" / folder, ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path / "copy"


def comparison(name: str) -> Comparison:
    """As it is, on SQLite."""
    [found] = [each for each in COMPARISONS if each.name == name]
    return replace(found, database=Databases.sqlite)


def test_a_slowed_copy_is_seen_in_cpu_and_throughput(
    copy: Path, participant: Noop, databases: Databases, tmp_path: Path
) -> None:
    with (copy / "app/protocol/steps.py").open("a") as steps:
        steps.write(SLOWED)
    other = open_checkout(copy)
    [compared] = compare([comparison("sqlite")], other, databases, participant, rounds=1, transactions=4)
    assert ratio(*compared.values("cpu_ms")).median < 0.5
    assert ratio(*compared.values("throughput_per_s")).median > 1.5
    table = report([compared], other)
    assert "| sqlite | CPU ms/tx " in table
    assert "| sqlite | /healthz p90 ms " in table
    assert "database CPU" not in table, "SQLite's is a part of the coordinator's"
    assert list((tmp_path / "databases").iterdir()) == [], "both databases are gone"


def test_transactions_of_64_kib_are_confirmed(participant: Noop, databases: Databases) -> None:
    [compared] = compare([comparison("large")], THIS, databases, participant, rounds=1, transactions=2)
    assert compared.these[0]["throughput_per_s"] > 0


def test_one_side_has_its_guards_up(participant: Noop, databases: Databases) -> None:
    """Its clients show keys: without one they are refused, so those of the other side would fail there."""
    [compared] = compare([comparison("guarded")], open_checkout(ROOT), databases, participant, rounds=1, transactions=2)
    assert compared.these[0]["throughput_per_s"] > 0


async def test_the_large_payloads_are_64_kib() -> None:
    class Kept:
        body = b""

        async def post(self, url: str, body: bytes) -> tuple[int, bytes]:
            self.body = body
            return 201, b'{"outcome":"confirmed"}'

    kept: Any = Kept()
    await large_client.transact(kept, "http://nowhere", "http://nowhere", "1")
    payloads = [branch["payload"] for branch in json.loads(kept.body)["branches"]]
    assert payloads == [json.loads(LARGE_JSON)] * 2
    assert 65_000 < len(LARGE_JSON) <= 65_536


@pytest.mark.parametrize("name", ["large-a", "large-b"])
def test_the_large_results_are_64_kib(participant: Noop, name: str) -> None:
    assert urlopen(f"{participant.participants()[name]}/try", data=b"{}").read().decode() == LARGE_JSON


# --- what can't be compared ---------------------------------------------------------------------------------------


def test_a_folder_that_is_not_there_or_has_no_holdfast_says_what_to_do(tmp_path: Path, copy: Path) -> None:
    with pytest.raises(BadCheckout, match=r"missing: no such folder\. Make one: git worktree add"):
        open_checkout(tmp_path / "missing")
    with pytest.raises(BadCheckout, match=r"not the root of a checkout of Holdfast: it has no app/__main__\.py and no"):
        open_checkout(tmp_path)
    shutil.rmtree(copy / "participants/holdfast")
    with pytest.raises(BadCheckout, match=r"it has no participants/holdfast/__init__\.py\. Make one"):
        open_checkout(copy)


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        (["--against", "no/such/folder"], "no such folder"),
        (
            ["--against", ".", "--case", "sqlite,odd"],
            "no such case: odd; there are sqlite, postgres, ",
        ),
    ],
)
def test_the_command_refuses_what_it_can_not_compare_before_it_starts_anything(
    arguments: Sequence[str], fault: str
) -> None:
    command = [sys.executable, "-m", "tests.benchmark", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert fault in done.stderr
    assert "Traceback" not in done.stderr


def test_both_the_coordinator_and_the_sdk_come_from_the_other_checkout(
    copy: Path, participant: Noop, databases: Databases
) -> None:
    (copy / "participants/holdfast/__init__.py").write_text("import a_package_of_tomorrow")
    with pytest.raises(CannotRun, match=r"(?s)copy can't be run.*a_package_of_tomorrow.*install the missing one"):
        compare([comparison("sqlite")], open_checkout(copy), databases, participant, rounds=1)


def test_a_database_of_another_schema_says_what_the_check_reads(tmp_path: Path) -> None:
    with pytest.raises(CheckFailed, match=r"no such table.*another schema.*`phase` in `transactions`"):
        Database(f"sqlite:///{tmp_path}/empty.db").check()


def test_answers_that_are_not_confirmed_are_counted_for_nothing(participant: Noop) -> None:
    plan = Plan(url=participant.url, participant_url=participant.url, clients=2)  # a participant is no coordinator
    with PacedClients(plan) as clients, pytest.raises(CheckFailed, match="0 of 3 confirmed; the first error: Unexpect"):
        clients.run(3)


def test_a_coordinator_whose_health_is_not_answered_fails_the_turn() -> None:
    with pytest.raises(CheckFailed, match="GET /healthz"), HealthProbe("http://127.0.0.1:1"):
        pass


# --- rounds and ratios --------------------------------------------------------------------------------------------


class RecordingSide:
    """Its figure is its name's length."""

    def __init__(self, name: str, log: list[str]) -> None:
        self._name = name
        self._log = log

    def warm_up(self, transactions: int) -> None:
        self._log.append(f"warm {self._name}")

    def turn(self, transactions: int) -> None:
        self._log.append(f"{self._name} {transactions}")

    def figures(self) -> dict[str, float]:
        return {"cpu_ms": float(len(self._name))}


def test_the_sides_take_turns_and_the_next_round_begins_with_the_other_one(
    monkeypatch: pytest.MonkeyPatch, participant: Noop, databases: Databases
) -> None:
    log: list[str] = []

    @contextmanager
    def started(_: Comparison, checkout: Checkout, *__: object) -> Iterator[RecordingSide]:
        name = "this" if checkout is THIS else "other"
        log.append(f"start {name}")
        yield RecordingSide(name, log)

    monkeypatch.setattr(against, "_started", started)
    monkeypatch.setattr(against, "WARM_UP_TURNS", 1)
    other = Checkout(Path("other"))
    [compared] = compare([comparison("sqlite")], other, databases, participant, rounds=2, transactions=7)
    one = ["start this", "start other", "warm this", "warm other"]
    one += ["this 7", "other 7", "other 7", "this 7"] * 2
    swapped = {"this": "other", "other": "this"}
    two = [" ".join(swapped.get(word, word) for word in line.split()) for line in one]
    assert log == one + two
    assert compared == Compared("sqlite", these=[{"cpu_ms": 4.0}] * 2, others=[{"cpu_ms": 5.0}] * 2)


def test_a_ratio_is_the_median_of_the_rounds_ratios() -> None:
    found = ratio([2.0, 40.0, 6.0], [1.0, 10.0, 2.0])
    assert (found.least, found.median, found.most) == (2.0, 3.0, 4.0)
    assert ratio([3.0, 5.0], [1.0, 1.0]).median == 4.0


@pytest.mark.parametrize(
    ("rounds", "sure"),
    [
        (1, None),
        (5, None),  # even all of them leave out the median once in sixteen times
        (6, (1.0, 6.0)),
        (9, (2.0, 8.0)),
        (10, (2.0, 9.0)),
        (20, (6.0, 15.0)),
    ],
)
def test_how_sure_the_median_is_follows_from_the_number_of_rounds(
    rounds: int, sure: tuple[float, float] | None
) -> None:
    values = [float(number) for number in range(1, rounds + 1)]
    assert ratio(values[::-1], [1.0] * rounds).sure == sure


def test_a_round_gone_wrong_moves_neither_the_median_nor_how_sure_it_is() -> None:
    calm = ratio([1.0] * 5 + [1.1] * 5, [1.0] * 10)
    disturbed = ratio([1.0] * 5 + [1.1] * 4 + [50.0], [1.0] * 10)
    assert (disturbed.median, disturbed.sure) == (calm.median, calm.sure)
    assert disturbed.most == 50.0
