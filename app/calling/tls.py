"""TLS to participants: which certificates of theirs are trusted, and the one that the coordinator shows them."""

import ssl
from pathlib import Path

import httpx


def tls_context(*, ca_file: Path | None, cert_file: Path | None, key_file: Path | None) -> ssl.SSLContext:
    """A context that trusts the usual authorities and those of `ca_file`, and shows the certificate of `cert_file`.

    `key_file` is its key, unless that is in the same file. Raises ValueError with a message that names the setting.
    """
    if key_file is not None and cert_file is None:
        raise ValueError("HOLDFAST_CALL_KEY_FILE needs HOLDFAST_CALL_CERT_FILE, the certificate of this key")
    context = httpx.create_ssl_context()
    if ca_file is not None:
        try:
            context.load_verify_locations(cafile=ca_file)
        except (OSError, ssl.SSLError) as error:
            raise ValueError(
                f"HOLDFAST_CALL_CA_FILE: can't read certificates in {ca_file} ({_reason(error)})"
            ) from None
    if cert_file is not None:
        try:
            context.load_cert_chain(cert_file, key_file, password=_no_password)
        except (OSError, ssl.SSLError, ValueError) as error:
            files = " and ".join(str(each) for each in (cert_file, key_file) if each)
            raise ValueError(
                f"HOLDFAST_CALL_CERT_FILE, HOLDFAST_CALL_KEY_FILE: can't read a certificate and its key, without a "
                f"password, in {files} ({_reason(error)})"
            ) from None
    return context


def _no_password() -> str:
    """Without this OpenSSL would ask at the terminal."""
    raise ValueError("the key has a password")


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or getattr(error, "reason", None) or str(error)
