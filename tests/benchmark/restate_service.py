"""The same work as a Restate service: two Trys, and when both hold two Confirms, each a durable step.

Tuned: both calls of a phase are under way at once, over the transport that Holdfast calls with. Restate and its SDK are
not installed with the benchmark; in an environment that has restate-sdk, hypercorn and pyreqwest, at the repository's
root:

    hypercorn tests.benchmark.restate_service:app --bind 127.0.0.1:9080
    curl 127.0.0.1:9070/deployments --json '{"uri": "http://127.0.0.1:9080"}'      # tells Restate about it
    make bench ARGS='--restate http://127.0.0.1:8080'
"""

import sys
from datetime import timedelta
from typing import Any, Final

from pyreqwest.client import Client, ClientBuilder

try:
    import restate
except ImportError:
    sys.exit("The Restate SDK is not installed: pip install restate-sdk hypercorn")

PAYLOADS: Final = {"a": {"sku": "A-1", "quantity": 2}, "b": {"customer": "ada", "amount_cents": 5000}}
CALL_TIMEOUT_S: Final = 5

service = restate.Service("tcc")
_clients: list[Client] = []


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
    if not _clients:
        _clients.append(ClientBuilder().no_proxy().timeout(timedelta(seconds=CALL_TIMEOUT_S)).build())
    message = {"branch": name, "payload": PAYLOADS[name]}
    response = await _clients[0].post(url).body_json(message).error_for_status(True).build().send()
    return await response.json()


app = restate.app([service])
