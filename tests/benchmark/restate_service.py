"""The same work as a Restate service: two Trys, and when both hold two Confirms, each a durable step.

Tuned: both calls of a phase are under way at once, over the transport that Holdfast calls with. Restate and its SDK are
not installed with the benchmark; in an environment that has restate-sdk, hypercorn, httpx and httptools, at the
repository's root:

    hypercorn tests.benchmark.restate_service:app --bind 127.0.0.1:9080
    curl 127.0.0.1:9070/deployments --json '{"uri": "http://127.0.0.1:9080"}'      # tells Restate about it
    make bench ARGS='--restate http://127.0.0.1:8080'
"""

import asyncio
import json
import sys
from typing import Any, Final

import httpx

try:
    import restate
except ImportError:
    sys.exit("The Restate SDK is not installed: pip install restate-sdk hypercorn httpx httptools")

from app.calling.transport import Transport

PAYLOADS: Final = {"a": {"sku": "A-1", "quantity": 2}, "b": {"customer": "ada", "amount_cents": 5000}}
CALL_TIMEOUT_S: Final = 5
RESPONSE_MAX_BYTES: Final = 65_536

service = restate.Service("tcc")
_transports: list[Transport] = []


@service.handler()
async def transact(context: restate.Context, wanted: dict[str, str]) -> dict[str, str]:
    """Try both branches, then confirm both."""
    participant_url = wanted["participant_url"]
    for operation in ("try", "confirm"):
        steps = [
            context.run_typed(f"{operation} {name}", _call, url=f"{participant_url}/{name}/{operation}", name=name)
            for name in PAYLOADS
        ]
        await restate.gather(*steps)
        for step in steps:
            await step
    return {"reference": wanted["reference"], "outcome": "confirmed"}


async def _call(url: str, name: str) -> Any:
    if not _transports:  # it belongs to the event loop that it is first used on
        _transports.append(Transport(response_max_bytes=RESPONSE_MAX_BYTES))
    request = httpx.Request("POST", url, json={"branch": name, "payload": PAYLOADS[name]})
    async with asyncio.timeout(CALL_TIMEOUT_S):
        response = await _transports[0].handle_async_request(request)
    if response.status_code != 200:
        raise RuntimeError(f"HTTP {response.status_code}")
    return json.loads(await response.aread())


app = restate.app([service])
