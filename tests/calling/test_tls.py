"""TLS with a private authority and a client certificate: to participants, and from the SDK to the coordinator."""

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import trustme
from pydantic import ValidationError
from sqlalchemy import create_engine

from app.main import transport_of
from app.settings import Settings
from holdfast import Client, CoordinatorUnreachable, Participant
from holdfast.participant.inquiry import Question, Verdict

BODY = b'{"decision":"confirm","id":"t","phase":"trying"}'


@dataclass(frozen=True)
class Files:
    """A private authority, and a certificate of it with and without its key in the same file."""

    authority: trustme.CA
    ca: Path
    both: Path
    cert: Path
    key: Path


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    folder, authority = tmp_path_factory.mktemp("tls"), trustme.CA()
    mine = authority.issue_cert("coordinator.internal")
    made = Files(authority, *(folder / name for name in ("ca.pem", "both.pem", "cert.pem", "key.pem")))
    authority.cert_pem.write_to_path(made.ca)
    mine.private_key_and_cert_chain_pem.write_to_path(made.both)
    mine.private_key_pem.write_to_path(made.key)
    made.cert.write_bytes(b"".join(pem.bytes() for pem in mine.cert_chain_pems))
    return made


@asynccontextmanager
async def serving(files: Files, *, asks_for_a_certificate: bool, name: str = "127.0.0.1") -> AsyncIterator[str]:
    """The URL of a server whose certificate names `name`, signed by the private authority."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    files.authority.issue_cert(name).configure_cert(context)
    if asks_for_a_certificate:
        context.verify_mode = ssl.CERT_REQUIRED
        files.authority.configure_trust(context)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(BODY)
        try:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(head + BODY)
            await writer.drain()
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    async with server:
        yield f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}"


async def status(settings: Settings, url: str) -> int:
    transport = transport_of(settings)
    try:
        response = await transport.handle_async_request(httpx.Request("GET", f"{url}/try"))
        return response.status_code
    finally:
        await transport.aclose()


async def test_a_private_authority_is_trusted_once_it_is_set(files: Files) -> None:
    async with serving(files, asks_for_a_certificate=False) as url:
        assert await status(Settings(call_ca_file=files.ca), url) == 200
        with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
            await status(Settings(), url)
    async with serving(files, asks_for_a_certificate=False, name="other.internal") as url:
        with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
            await status(Settings(call_ca_file=files.ca), url)


async def test_a_participant_that_asks_for_a_certificate_sees_ours(files: Files) -> None:
    async with serving(files, asks_for_a_certificate=True) as url:
        assert await status(Settings(call_ca_file=files.ca, call_cert_file=files.both), url) == 200
        apart = Settings(call_ca_file=files.ca, call_cert_file=files.cert, call_key_file=files.key)
        assert await status(apart, url) == 200
        with pytest.raises(httpx.TransportError):
            await status(Settings(call_ca_file=files.ca), url)


async def test_the_sdk_reaches_a_coordinator_with_a_private_authority(files: Files) -> None:
    tls = ssl.create_default_context(cafile=files.ca)
    tls.load_cert_chain(files.both)
    async with serving(files, asks_for_a_certificate=True) as url:
        async with Client(url, tls=tls) as client:
            assert (await client.get("t")).id == "t"
        async with Client(url, attempts_max=1) as client:
            with pytest.raises(CoordinatorUnreachable, match="CERTIFICATE_VERIFY_FAILED"):
                await client.get("t")
        engine = create_engine("sqlite:///seats.db")
        for known, verdict in ((tls, Verdict.CONFIRM), (None, Verdict.UNREACHABLE)):
            async with Participant("seats", engine, coordinator_url=url, tls=known)._asking() as ask:
                assert (await ask(Question("t", "seats", None))).verdict is verdict


def test_tls_and_a_transport_contradict_each_other(files: Files) -> None:
    both: dict[str, Any] = {"tls": ssl.create_default_context(), "transport": httpx.MockTransport(lambda _: None)}  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="not both"):
        Client("https://coordinator", **both)
    with pytest.raises(ValueError, match="not both"):
        Participant("seats", create_engine("sqlite:///seats.db"), coordinator_url="https://coordinator", **both)


def test_files_that_can_not_be_used_stop_the_start_by_name(files: Files, tmp_path: Path) -> None:
    empty = tmp_path / "empty.pem"
    empty.write_text("")
    for given, named in (
        ({"call_ca_file": tmp_path / "none"}, "HOLDFAST_CALL_CA_FILE"),
        ({"call_ca_file": empty}, "HOLDFAST_CALL_CA_FILE"),
        ({"call_ca_file": tmp_path}, "HOLDFAST_CALL_CA_FILE"),
        ({"call_cert_file": empty}, "HOLDFAST_CALL_CERT_FILE"),
        ({"call_cert_file": files.cert}, "HOLDFAST_CALL_CERT_FILE"),
        ({"call_cert_file": files.cert, "call_key_file": empty}, "HOLDFAST_CALL_CERT_FILE"),
        ({"call_key_file": files.key}, "HOLDFAST_CALL_KEY_FILE needs"),
    ):
        with pytest.raises(ValidationError, match=named):
            Settings(**given)  # type: ignore[arg-type]
