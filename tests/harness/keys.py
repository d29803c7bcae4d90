"""Keys of a coordinator under test, and who shows which."""

from typing import Any, Final

import httpx

from app.auth.api_keys import ApiKey
from tests.harness.coordinator_app import Json, Service

FIRST: Final = ApiKey("0" * 12, "0" * 32)
AUTHENTICATED: Final[dict[str, Any]] = {"auth": "require", "bootstrap_key": FIRST.text, "rate_per_key": 0}
"""Settings of a coordinator that requires keys, and whose first one is known."""


def showing(key: str) -> dict[str, str]:
    """The headers of a request with this key."""
    return {"Authorization": f"Bearer {key}"}


async def issued(service: Service, *roles: str, name: str = "", **rights: Any) -> Json:
    """A key with these roles, as an admin gets it."""
    body = {"name": name or "-".join(roles), "roles": list(roles), **rights}
    answer = await service.client.post("/v1/admin/keys", json=body, headers=showing(FIRST.text))
    assert answer.status_code == 201, answer.text
    created: Json = answer.json()
    return created


async def client_of(service: Service, *roles: str, name: str = "", **rights: Any) -> httpx.AsyncClient:
    """A client that shows a new key with these roles."""
    key = (await issued(service, *roles, name=name, **rights))["key"]
    return httpx.AsyncClient(
        transport=service.client._transport, base_url="http://localhost", headers=showing(key), timeout=None
    )
