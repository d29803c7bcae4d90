"""What an initiator does with DTM's HTTP API for one TCC transaction; the URL ends in /api/dtmsvr.

As DTM wants it, the client itself calls Try, each after its branch is registered; the two branches are worked on at
once. `submit` with wait_result answers when the Confirms are done.
"""

import asyncio
import json
from typing import Any
from urllib.parse import urlencode

from tests.benchmark.http_client import Connections, Unexpected

_PAYLOADS = {"a": {"sku": "A-1", "quantity": 2}, "b": {"customer": "ada", "amount_cents": 5000}}


async def transact(connections: Connections, url: str, participant_url: str, reference: str) -> None:
    """One two-branch transaction, confirmed, or Unexpected."""
    gid = _checked(await connections.get(f"{url}/newGid"))["gid"]
    transaction = {"gid": gid, "trans_type": "tcc", "wait_result": True}
    _checked(await connections.post(f"{url}/prepare", json.dumps(transaction).encode()))
    await asyncio.gather(
        *(
            _try(connections, url, gid, f"0{number}", f"{participant_url}/{name}", payload)
            for number, (name, payload) in enumerate(_PAYLOADS.items(), 1)
        )
    )
    _checked(await connections.post(f"{url}/submit", json.dumps(transaction).encode()))


async def _try(connections: Connections, url: str, gid: str, branch_id: str, base_url: str, payload: Any) -> None:
    data = json.dumps(payload)
    branch = {"gid": gid, "trans_type": "tcc", "branch_id": branch_id, "data": data, "status": "prepared"}
    urls = {"confirm": f"{base_url}/confirm", "cancel": f"{base_url}/cancel"}
    _checked(await connections.post(f"{url}/registerBranch", json.dumps(branch | urls).encode()))
    query = urlencode({"gid": gid, "trans_type": "tcc", "branch_id": branch_id, "op": "try"})
    status, answer = await connections.post(f"{base_url}/try?{query}", data.encode())
    if status != 200:
        raise Unexpected(f"Try: {status} {answer[:300]!r}")


def _checked(answer: tuple[int, bytes]) -> Any:
    status, body = answer
    document = json.loads(body) if status == 200 else {}
    if document.get("dtm_result") != "SUCCESS":
        raise Unexpected(f"{status} {body[:300]!r}")
    return document
