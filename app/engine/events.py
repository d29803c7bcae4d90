"""Says in the log what a person should hear of a transaction, once it is durable. Decides nothing."""

import logging
from collections.abc import Sequence

from app.protocol.messages import BranchResolved, Input, RetryRequested
from app.protocol.values import Outcome, Transaction

log = logging.getLogger(__name__)


def log_save(before: Transaction, after: Transaction, inputs: Sequence[Input]) -> None:
    """A save: from the state that was stored to the one that is stored now, and what the last step was made from."""
    for each in inputs:
        match each:
            case RetryRequested(by=by):
                log.info("event=retried transaction_id=%s by=%r", after.id, by)
            case BranchResolved(branch=name, settled=settled, by=by, reason=reason):
                branch = after.branch(name)
                log.warning(
                    "event=resolved transaction_id=%s branch=%s participant=%s settled=%s by=%r reason=%r",
                    after.id,
                    name,
                    branch and branch.asked_of,
                    settled,
                    by,
                    reason,
                )
    if before.hung_since is not None or after.hung_since is not None:
        _log_hung(before, after)
    if after.finished and after.outcome is Outcome.MIXED:
        log.warning("event=mixed transaction_id=%s decision=%s", after.id, after.decision)


def _log_hung(before: Transaction, after: Transaction) -> None:
    for was, branch in zip(before.branches, after.branches, strict=True):
        if branch.hung_reason is not None and branch.hung_reason is not was.hung_reason:
            log.warning(
                "event=hung transaction_id=%s branch=%s participant=%s reason=%s",
                after.id,
                branch.name,
                branch.asked_of,
                branch.hung_reason,
            )
        elif branch.hung_reason is None and was.hung_reason is not None:
            log.info(
                "event=no_longer_hung transaction_id=%s branch=%s participant=%s reason=%s",
                after.id,
                branch.name,
                branch.asked_of,
                was.hung_reason,
            )
