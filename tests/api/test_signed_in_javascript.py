"""A service in JavaScript verifies the coordinator's calls, following the specification of Standard Webhooks."""

import base64
import json
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any, Final

import pytest

from holdfast.signing import Secret
from tests.api.test_participant_secrets import BEGIN, calls_of, keyed, rotated
from tests.harness.coordinator_app import Received, running

NODE: Final = shutil.which("node")
SCRIPT: Final = Path(__file__).with_name("verify_signature.mjs")

pytestmark = pytest.mark.skipif(NODE is None, reason="needs Node.js")


def said_of(call: Received, *secrets: str, **changes: Any) -> str:
    assert NODE is not None
    asked = {
        "secrets": secrets,
        "headers": dict(call.headers),
        "body": base64.b64encode(call.content).decode(),
        "now": time.time(),
    }
    done = subprocess.run([NODE, SCRIPT], input=json.dumps(asked | changes), text=True, capture_output=True, check=True)
    return done.stdout.strip()


async def test_it_accepts_what_the_coordinator_signs_and_nothing_else(sqlite_url: str) -> None:
    async with running(sqlite_url, **keyed()) as service:
        await service.register("inventory")
        first, second = (await rotated(service))["secret"], (await rotated(service))["secret"]
        tried, confirmed = await calls_of(service, BEGIN)
    for call in (tried, confirmed):
        assert said_of(call, first) == said_of(call, second) == "valid"
    assert said_of(tried, Secret.generate().text) == "forged"
    assert said_of(tried, first, body=base64.b64encode(confirmed.content).decode()) == "forged"
    assert said_of(tried, first, now=time.time() + 400) == "stale"
    assert said_of(tried, first, headers={}) == "missing"
