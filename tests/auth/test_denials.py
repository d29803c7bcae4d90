"""What is refused is recorded, once a minute for a key or an address, and not without limit."""

from typing import Any

import pytest

from app.auth import denials
from app.auth.denials import Denials
from app.protocol.messages import Asker
from app.storage.audit import AuditEntry


class Noted:
    def __init__(self) -> None:
        self.entries: list[AuditEntry] = []
        self.now = 60_000.0

    def add(self, _function: Any, entry: AuditEntry) -> None:
        self.entries.append(entry)

    def denials(self) -> Denials:
        writes: Any = self
        return Denials(writes, lambda: self.now)


def note(denied: Denials, key_id: str | None = None, address: str | None = "10.0.0.7") -> None:
    denied.note(key_id, Asker(actor="ada", address=address), "POST /v1/x", "/v1/x/" + "y" * 1_000, "because")


def test_one_a_minute_for_a_key_and_for_an_address() -> None:
    noted = Noted()
    denied = noted.denials()
    for _ in range(3):
        note(denied, "key-1")
        note(denied, "key-2")
        note(denied)
    assert len(noted.entries) == 3
    noted.now += 59.9
    note(denied, "key-1")
    assert len(noted.entries) == 3
    noted.now += 0.1
    note(denied, "key-1")
    assert len(noted.entries) == 4
    entry = noted.entries[0]
    assert (entry.outcome, entry.asker.actor, entry.action, entry.reason) == ("denied", "ada", "POST /v1/x", "because")
    assert len(entry.target) == 200


def test_a_host_with_many_ipv6_addresses_is_one() -> None:
    noted = Noted()
    denied = noted.denials()
    for host in range(100):
        note(denied, address=f"2001:db8:0:1::{host:x}")
    assert len(noted.entries) == 1
    note(denied, address="2001:db8:0:2::1")
    note(denied, address="not an address")
    note(denied, address=None)
    assert len(noted.entries) == 3


def test_a_day_has_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(denials, "PER_DAY_MAX", 5)
    noted = Noted()
    denied = noted.denials()
    for number in range(20):
        note(denied, str(number))
        noted.now += 60
    assert len(noted.entries) == 5
    noted.now += 86_400
    note(denied)
    assert len(noted.entries) == 6
