"""The coordinator's URL, as participants and clients are configured with it: checked, and printed without secrets."""

from urllib.parse import SplitResult, urlsplit, urlunsplit


def base_url(coordinator_url: str) -> str:
    """`coordinator_url` without a slash at its end. Raises ValueError when no coordinator can be there."""
    parts = urlsplit(coordinator_url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(
            f"coordinator_url must be the coordinator's base URL, such as http://127.0.0.1:8000, "
            f"not {printable_url(coordinator_url)!r}"
        )
    if parts.query or parts.fragment:
        raise ValueError("coordinator_url must not have a query or a fragment")
    if parts.path.rstrip("/").endswith("/v1"):
        raise ValueError("coordinator_url must not end in /v1: give the base URL, the SDK adds the version")
    _ = parts.port  # raises ValueError when it is no number
    return coordinator_url.rstrip("/")


def printable_url(url: str) -> str:
    """`url` without user, password and query, for logs and errors."""
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    return urlunsplit(SplitResult(parts.scheme, host, parts.path, "", ""))
