"""How participants and clients reach the coordinator: its URL and their key, checked, and printed without secrets."""

from urllib.parse import SplitResult, urlsplit, urlunsplit


def base_url(coordinator_url: str) -> str:
    """`coordinator_url` without a trailing slash. Raises ValueError if it can't be a coordinator's base URL."""
    parts = urlsplit(coordinator_url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(
            f"coordinator_url must be the coordinator's base URL, such as http://127.0.0.1:8000, "
            f"not {printable_url(coordinator_url)!r}"
        )
    if parts.query or parts.fragment:
        raise ValueError("coordinator_url must not have a query or a fragment: give the base URL alone")
    if parts.path.rstrip("/").endswith("/v1"):
        raise ValueError("coordinator_url must not end in /v1: give the base URL, the SDK appends the version")
    _ = parts.port  # raises ValueError if it is invalid
    return coordinator_url.rstrip("/")


def credentials(api_key: str | None) -> dict[str, str]:
    """The headers that show this key. Raises ValueError, without the key, for text that can't be one."""
    if api_key is None:
        return {}
    key = api_key.strip()  # of the line break at the end of a file
    if not key or not key.isascii() or not key.isprintable() or " " in key:
        raise ValueError("api_key must be a key of the coordinator, such as python -m app keys create prints")
    return {"Authorization": f"Bearer {key}"}


def printable_url(url: str) -> str:
    """`url` without user name, password and query, for logs and errors."""
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    return urlunsplit(SplitResult(parts.scheme, host, parts.path, "", ""))
