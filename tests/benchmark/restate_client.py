"""What a client of restate_service.py does: one POST to Restate's ingress, whose answer is the outcome."""

import json

from tests.benchmark.http_client import Connections, Unexpected


async def transact(connections: Connections, url: str, participant_url: str, reference: str) -> None:
    """One two-branch transaction, confirmed, or Unexpected."""
    wanted = {"reference": reference, "participant_url": participant_url}
    status, answer = await connections.post(f"{url}/tcc/transact", json.dumps(wanted).encode())
    if status != 200 or json.loads(answer).get("outcome") != "confirmed":
        raise Unexpected(f"{status} {answer[:300]!r}")
