"""Says in the log what the record says, once it is durable: what was done, by whom, and from where."""

import logging

from app.storage.audit import AuditEntry

log = logging.getLogger(__name__)


def log_entry(entry: AuditEntry) -> None:
    """One line for an entry. What was changed is in the record alone: it may be long."""
    log.info(
        "event=audited actor=%r role=%s address=%s action=%s target=%s reason=%r",
        entry.asker.actor,
        entry.asker.role,
        entry.asker.address,
        entry.action,
        entry.target,
        entry.reason,
    )
