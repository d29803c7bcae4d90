"""Exported files: one line a record, durable, and never half a line in the middle."""

import json
import os
import resource
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from app.api.rendering import call_json, exported, to_json, transaction_json
from app.maintenance.export import Export
from app.protocol.values import Transaction
from app.storage.purge import Record
from holdfast.json_text import checked
from holdfast.wire import Decision
from tests.harness.transactions import CAR, call, transaction

NOON = 1_800_014_400.0  # 2027-01-15T12:00:00Z


def record(number: int, *attempts: int) -> Record:
    finished = ended(number)
    return finished, iter([call(finished, attempt) for attempt in attempts])


def ended(number: int) -> Transaction:
    strange = replace(CAR, payload=checked(b'["a\xe2\x80\xa8b\\nc",\r\n"\\r\xe2\x82\xac"]'))
    return transaction(number, strange, decision=Decision.CONFIRM, finished_at=5.0, wake_at=None)


def lines(directory: Path) -> list[dict[str, object]]:
    (file,) = directory.iterdir()
    return [json.loads(line) for line in file.read_bytes().split(b"\n")[:-1]]


def test_a_line_is_the_resource_with_its_calls(tmp_path: Path) -> None:
    export = Export(tmp_path, exported)
    export.append([record(1, 1, 2), record(2)], NOON)
    export.append([record(3, 1)], NOON + 1)
    assert lines(tmp_path) == [
        json.loads(to_json(transaction_json(ended(n)) | {"calls": [call_json(call(ended(n), a)) for a in attempts]}))
        for n, attempts in ((1, (1, 2)), (2, ()), (3, (1,)))
    ]


def test_each_day_and_each_process_has_a_file_that_only_its_owner_reads(tmp_path: Path) -> None:
    for export in (Export(tmp_path, exported), Export(tmp_path, exported)):
        for at in (NOON, NOON + 3600, NOON + 86_400):
            export.append([record(1)], at)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert [name[:23] for name in names] == ["transactions-2027-01-15"] * 2 + ["transactions-2027-01-16"] * 2
    assert len({name[23:] for name in names}) == 2
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o600}


@pytest.fixture
def small_files_only() -> Iterator[None]:
    """A disk on which files have room for 4,000 bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4_000, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_when_the_disk_is_full_no_half_line_stays(tmp_path: Path, small_files_only: None) -> None:
    export = Export(tmp_path, exported)
    export.append([record(1)], NOON)
    before = lines(tmp_path)
    with pytest.raises(OSError, match="too large"):
        export.append([record(2, *range(100))], NOON)
    assert lines(tmp_path) == before
    export.append([record(3)], NOON)
    assert [line["id"] for line in lines(tmp_path)] == [ended(1).id, ended(3).id]


def test_it_is_on_the_disk_when_it_returns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[tuple[bool, int]] = []
    fsync = os.fsync

    def watched(descriptor: int) -> None:
        fsync(descriptor)
        state = os.fstat(descriptor)
        synced.append((os.path.isdir(f"/proc/self/fd/{descriptor}"), state.st_size))

    monkeypatch.setattr(os, "fsync", watched)
    export = Export(tmp_path, exported)
    export.append([record(1)], NOON)
    (file,) = tmp_path.iterdir()
    assert synced[0] == (False, file.stat().st_size)
    assert [is_directory for is_directory, _ in synced] == [False, True]
    export.append([record(2)], NOON)
    assert synced[2:] == [(False, file.stat().st_size)]
