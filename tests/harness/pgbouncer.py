"""A real PgBouncer before a PostgreSQL server of the tests, in transaction mode: Debian's, where it is installed.

with PgBouncer(server) as pooler:
    url = pooler.url(database_url)       # the same database, through it
"""

import os
import shutil
import signal
from pathlib import Path
from typing import Final, Self

from sqlalchemy import make_url

from tests.harness.postgres import PostgresServer
from tests.harness.server_process import ServerError, ServerProcess, free_port, temporary_home, unprivileged_user

PROGRAM: Final = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin")
WHY_NONE: Final = "pgbouncer is not installed"
START_TIMEOUT_S: Final = 20.0
SESSIONS: Final = 2
"""Fewer than the connections of one coordinator, so that transactions share sessions from the start."""
_CONFIG: Final = """
[databases]
* = host=127.0.0.1 port={server_port}

[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = trust
auth_file = {home}/users
pool_mode = transaction
default_pool_size = {sessions}
max_client_conn = 200
"""


class PgBouncer:
    """Started on entry, and gone on exit."""

    def __init__(self, server: PostgresServer) -> None:
        self._server = server

    def __enter__(self) -> Self:
        assert PROGRAM is not None, WHY_NONE
        identity = unprivileged_user()
        self.port = free_port()
        self._home = temporary_home("holdfast-pgbouncer-")
        config = self._home / "pgbouncer.ini"
        text = _CONFIG.format(server_port=self._server.port, port=self.port, home=self._home, sessions=SESSIONS)
        config.write_text(text)
        (self._home / "users").write_text('"postgres" ""\n')
        for path in (self._home, config, self._home / "users"):
            os.chown(path, *identity)
        self._process = ServerProcess([Path(PROGRAM), config], identity, ready_lines=("process up",))
        if not self._process.wait_ready(START_TIMEOUT_S):
            log = self._process.log
            self.__exit__()
            raise ServerError(f"PgBouncer did not start:\n{log}")
        return self

    def __exit__(self, *_: object) -> None:
        self._process.stop(signal.SIGINT)
        shutil.rmtree(self._home, ignore_errors=True)

    def url(self, database_url: str) -> str:
        """The URL of the same database, through this pooler."""
        return make_url(database_url).set(port=self.port).render_as_string(hide_password=False)
