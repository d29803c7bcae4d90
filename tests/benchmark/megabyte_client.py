"""A client whose transactions carry a megabyte of brackets, which costs whoever parses it most."""

import json
from typing import Final

from tests.benchmark.holdfast_client import begin_and_confirm
from tests.benchmark.http_client import Connections

_BRACKETS: Final = "[" + "[]," * 174_000 + "[]]"
_BRANCHES: Final = ",".join(f'{{"participant":"{participant}","payload":{_BRACKETS}}}' for participant in ("a", "b"))


async def transact(connections: Connections, url: str, participant_url: str, reference: str) -> None:
    """One two-branch transaction, confirmed, or Unexpected."""
    begin = f'{{"name":"bench","reference":{json.dumps(reference)},"branches":[{_BRANCHES}]}}'
    await begin_and_confirm(connections, url, begin.encode())
