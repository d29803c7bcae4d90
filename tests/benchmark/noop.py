"""The participants: servers that answer every call at once and cost almost no CPU, and one that never answers.

nginx where it is installed, else asyncio and httptools bare. Both count the calls that reach them, because a
benchmark must know that every call was really made.

    python -m tests.benchmark.noop PORT           # the bare server
    python -m tests.benchmark.noop PORT --dead    # never answers, until POST /revive
"""

import asyncio
import re
import shutil
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import httptools
import uvloop

from tests.benchmark.processes import ServerProcess, free_port, wait_until

_LINE: Final = '{"sku":"A-100001","quantity":2,"price":12.75,"name":"Bottle 1 l"}'
_LINES, _TIMES = ",".join([_LINE] * 31), 32
"""nginx reads no word of its configuration that is longer than 4 kB: it puts the large answer together."""
LARGE_JSON: Final = f'{{"lines":[{",".join([_LINES] * _TIMES)}]}}'
"""64 KiB, which is as much as a coordinator takes by default: the result of every call to `/large/…`."""
_CONFIG: Final = """
daemon off;
master_process off;
pid {home}/pid;
error_log stderr error;
events {{ worker_connections 16384; }}
http {{
    access_log off;
    default_type application/json;
    keepalive_requests 1000000000;
    keepalive_timeout 1h;
    client_body_temp_path {home}/body;
    proxy_temp_path {home}/proxy;
    fastcgi_temp_path {home}/fastcgi;
    uwsgi_temp_path {home}/uwsgi;
    scgi_temp_path {home}/scgi;
    server {{
        listen 127.0.0.1:{port} backlog=4096;
        location /count {{ stub_status; }}
        location /refusing/confirm {{ return 409 '{{"detail":"no"}}'; }}
        location /large/ {{
            set $lines '{lines}';
            return 200 '{{"lines":[{references}]}}';
        }}
        location / {{ return 200 '{{"held":true}}'; }}
    }}
}}
"""
_REFUSED: Final = (b"/refusing/confirm", b"/dead/try")
"""What was dead knows of no Try: whoever still waits for one hears no, and so the transaction is cancelled."""
_START_TIMEOUT_S: Final = 10.0


@dataclass
class Noop:
    """A running participant. `/a/…` and `/b/…` are its two services; `/refusing/confirm` answers 409.

    `/large/a/…` and `/large/b/…` are two whose results are 64 KiB.
    """

    kind: str
    url: str
    looks: int = 0

    def count(self) -> int:
        """The calls that have reached it, without those that only asked for the count."""
        text = urllib.request.urlopen(f"{self.url}/count").read().decode()
        self.looks += 1
        last_line = next(line for line in text.splitlines() if re.fullmatch(r"[ \d]+", line))
        return int(last_line.split()[-1]) - self.looks

    def participants(self) -> dict[str, str]:
        """What HOLDFAST_PARTICIPANTS says about it."""
        return {
            "a": f"{self.url}/a",
            "b": f"{self.url}/b",
            "large-a": f"{self.url}/large/a",
            "large-b": f"{self.url}/large/b",
        }


@contextmanager
def noop(*, bare: bool = False) -> Iterator[Noop]:
    """The cheapest participant that this machine has."""
    port = free_port()
    nginx = None if bare else shutil.which("nginx")
    if nginx is None:
        with ServerProcess(sys.executable, "-m", "tests.benchmark.noop", str(port)) as server:
            yield Noop("asyncio and httptools", server.url)
        return
    with tempfile.TemporaryDirectory(prefix="holdfast-nginx-") as home:
        config = Path(home) / "nginx.conf"
        references = ",".join(["$lines"] * _TIMES)
        config.write_text(_CONFIG.format(home=home, port=port, lines=_LINES, references=references))
        # nginx says nothing when it is ready; sh says where it will listen, and then becomes it
        announced = f'echo running on http://127.0.0.1:{port} ; exec "$0" -c "$1" -e stderr'
        with ServerProcess("sh", "-c", announced, nginx, str(config)) as server:
            participant = Noop("nginx", server.url)
            if not wait_until(lambda: _answers(participant), timeout_s=_START_TIMEOUT_S):
                raise RuntimeError(f"nginx did not start:\n{server.log}")
            participant.looks = participant.count() + participant.looks
            yield participant


@contextmanager
def dead() -> Iterator[Noop]:
    """A participant that accepts connections and calls, and answers none, until `revive`."""
    with ServerProcess(sys.executable, "-m", "tests.benchmark.noop", str(free_port()), "--dead") as server:
        yield Noop("dead", server.url)


def revive(participant: Noop) -> None:
    """Have it answer from now on, those that wait first."""
    urllib.request.urlopen(f"{participant.url}/revive", data=b"").read()


def _answers(participant: Noop) -> bool:
    try:
        participant.count()
    except OSError:
        return False
    return True


# --- the bare server ---------------------------------------------------------------------------------------------

_LARGE_RESULT: Final = LARGE_JSON.encode()


@dataclass
class _Counts:
    requests: int
    is_dead: bool
    waiting: list["_Connection"]


class _Connection(asyncio.Protocol):
    def __init__(self, counts: _Counts) -> None:
        self._counts = counts
        self._parser = httptools.HttpRequestParser(self)
        self._path = b""

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_url(self, url: bytes) -> None:
        self._path = url

    def on_message_complete(self) -> None:
        counts = self._counts
        counts.requests += 1
        if self._path == b"/count":
            self._answer(b"200 OK", b" 0 0 %d" % counts.requests)
        elif self._path == b"/revive":
            counts.is_dead = False
            self._answer(b"200 OK", b"{}")
            for each in counts.waiting:
                each._answer_call()
        elif counts.is_dead:
            counts.waiting.append(self)
        else:
            self._answer_call()

    def _answer_call(self) -> None:
        if self._path in _REFUSED:
            self._answer(b"409 Conflict", b'{"detail":"no"}')
        elif self._path.startswith(b"/large/"):
            self._answer(b"200 OK", _LARGE_RESULT)
        else:
            self._answer(b"200 OK", b'{"held":true}')

    def _answer(self, status: bytes, body: bytes) -> None:
        head = b"HTTP/1.1 %b\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % (status, len(body))
        self._transport.write(head + body)


async def _serve(port: int, *, is_dead: bool) -> None:
    counts = _Counts(0, is_dead, [])
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: _Connection(counts), "127.0.0.1", port, backlog=4096)
    print(f"running on http://127.0.0.1:{port}", flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(_serve(int(sys.argv[1]), is_dead="--dead" in sys.argv))
