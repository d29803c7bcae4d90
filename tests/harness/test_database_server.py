"""Both database servers do what tests take for granted; what is each one's own is tested beside it."""

import os
import select
import shutil
import subprocess
import sys
from typing import Final

import pytest
from sqlalchemy.exc import OperationalError

from tests.harness.database_server import DatabaseServer
from tests.harness.databases import on_servers, rows
from tests.harness.repository import ROOT

OWNER: Final = """
import sys
from {module} import {kind}
with {kind}() as server:
    print(server.process_id, server.home, flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize("_again", range(2))
def test_each_test_gets_an_empty_database(database_url: str, _again: int) -> None:
    rows(database_url, "CREATE TABLE it_was_empty (id integer)")
    assert rows(database_url, "SELECT id FROM it_was_empty") == []


@on_servers
def test_committed_rows_survive_a_crash_and_the_url_stays_valid(
    database_server: DatabaseServer, database_url: str
) -> None:
    rows(database_url, "CREATE TABLE kept (id integer)")
    rows(database_url, "INSERT INTO kept VALUES (1)")
    before = database_server.process_id
    database_server.crash_and_start()
    assert database_server.process_id != before
    assert rows(database_url, "SELECT id FROM kept") == [(1,)]


@on_servers
def test_stopped_means_refused(database_server: DatabaseServer, database_url: str) -> None:
    database_server.stop()
    assert not database_server.running
    with pytest.raises(OperationalError, match="refused"):
        rows(database_url, "SELECT 1")


@on_servers
def test_servers_do_not_collide_and_leave_nothing(database_server: DatabaseServer) -> None:
    with type(database_server)() as other:
        home = other.home
        assert home is not None
        assert other.port != database_server.port
        assert other.data.is_dir()
        other.stop()
        other.port = database_server.port
        with pytest.raises(other.error, match=other.port_taken):
            other.start()
    assert not home.exists()
    assert not other.running


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's signal on a parent's death is Linux's")
@on_servers
def test_the_server_ends_with_a_test_run_that_was_killed(database_server: DatabaseServer) -> None:
    kind = type(database_server)
    command = [sys.executable, "-c", OWNER.format(module=kind.__module__, kind=kind.__name__)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, cwd=ROOT, text=True, **pipes) as owner:  # type: ignore[call-overload]
        process_id, home = owner.stdout.readline().split()
        server_end = os.pidfd_open(int(process_id))
        owner.kill()
    try:
        ended, _, _ = select.select([server_end], [], [], 30)
        assert ended, "the server outlived the test run"
    finally:
        os.close(server_end)
        shutil.rmtree(home)
