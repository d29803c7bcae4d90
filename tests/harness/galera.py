"""A real Galera cluster of three MariaDB nodes on loopback, for tests. Each node is a server as in mariadb.py.

    with GaleraCluster() as cluster:
        urls = cluster.create_database()         # one URL for each node, of one database
        cluster.nodes[0].crash()                 # kill -9
        cluster.rejoin(0)

What a node has is what all have, but not at the same instant: a write-set is certified everywhere when the commit
returns, and applied on the other nodes a little later.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final, Self

from tests.harness.mariadb import PACKAGES, MariadbServer, program, why_no_mariadb
from tests.harness.server_process import free_ports

NODES: Final = 3
_SYNCED: Final = "Synchronized with group, ready for connections"
_PROVIDERS: Final = ("/usr/lib/galera/libgalera_smm.so", "/usr/lib64/galera-4/libgalera_smm.so")

# A node that was killed is given up after a second, not after the default's five; the group's clock ticks accordingly.
_SUSPICION: Final = "evs.keepalive_period=PT0.2S;evs.inactive_check_period=PT0.2S;evs.suspect_timeout=PT1S"


def why_no_galera() -> str | None:
    """What to install, when this machine can't run a cluster."""
    if missing := why_no_mariadb():
        return missing
    if _provider() is None or program("rsync") is None:
        return f"no Galera provider or no rsync on this machine: apt-get install {PACKAGES}"
    return None


class GaleraCluster:
    """Three nodes: started on entry, killed and removed on exit."""

    def __init__(self) -> None:
        self.nodes = [MariadbServer() for _ in range(NODES)]
        ports = iter(free_ports(NODES * 4))
        self._ports = [(next(ports), next(ports), next(ports)) for _ in range(NODES)]
        self._client_ports = list(ports)
        self._exits = ExitStack()

    def __enter__(self) -> Self:
        with self._exits:
            for node, port in zip(self.nodes, self._client_ports, strict=True):
                self._exits.callback(node.__exit__)
                node.prepare()
                node.port = port
            self.nodes[0].launch([*self._options(0), "--wsrep-new-cluster"], also_ready=_SYNCED)
            self.nodes[0].wait_ready()
            for number in range(1, NODES):
                self.rejoin(number)
            self._exits = self._exits.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._exits.close()

    def rejoin(self, number: int) -> None:
        """Start a node that is not there, and return when it is synchronized with the others."""
        self.nodes[number].launch(self._options(number), also_ready=_SYNCED)
        self.nodes[number].wait_ready()

    def create_database(self) -> list[str]:
        """Create an empty database; returns its URL at each node."""
        url = self.nodes[0].create_database()
        return [url.replace(f":{self.nodes[0].port}/", f":{node.port}/") for node in self.nodes]

    @contextmanager
    def lagging(self, number: int) -> Iterator[None]:
        """While this lasts, a node is given what the others commit, but does not apply it: a lag, however long."""
        with self.nodes[number].connect() as connection, connection.cursor() as cursor:
            cursor.execute("FLUSH TABLES WITH READ LOCK")
            yield

    def _options(self, number: int) -> list[str]:
        replication, incremental, full = self._ports[number]
        addresses = ",".join(f"127.0.0.1:{ports[0]}" for ports in self._ports)
        provider = (
            f"gmcast.listen_addr=tcp://127.0.0.1:{replication};ist.recv_addr=127.0.0.1:{incremental};"
            f"gcache.size=8M;{_SUSPICION}"
        )
        settings = {
            "wsrep-on": "ON",
            "wsrep-provider": _provider(),
            "wsrep-provider-options": provider,
            "wsrep-cluster-name": "holdfast",
            "wsrep-cluster-address": f"gcomm://{addresses}",
            "wsrep-node-name": f"node-{number}",
            "wsrep-node-address": f"127.0.0.1:{replication}",
            "wsrep-sst-method": "rsync",
            "wsrep-sst-receive-address": f"127.0.0.1:{full}",
            "binlog-format": "ROW",
            "innodb-autoinc-lock-mode": 2,
        }
        return [f"--{name}={value}" for name, value in settings.items()]


def _provider() -> str | None:
    return next((path for path in _PROVIDERS if Path(path).exists()), None)
