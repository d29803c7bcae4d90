"""A client whose transactions carry 64 KiB to each branch, and bring 64 KiB back from each call."""

import json
from typing import Final

from tests.benchmark.holdfast_client import begin_and_confirm
from tests.benchmark.http_client import Connections
from tests.benchmark.noop import LARGE_JSON

_BRANCHES: Final = ",".join(
    f'{{"participant":"{participant}","payload":{LARGE_JSON}}}' for participant in ("large-a", "large-b")
)


async def transact(connections: Connections, url: str, participant_url: str, reference: str) -> None:
    """One two-branch transaction, confirmed, or Unexpected."""
    begin = f'{{"name":"bench","reference":{json.dumps(reference)},"branches":[{_BRANCHES}]}}'
    await begin_and_confirm(connections, url, begin.encode())
