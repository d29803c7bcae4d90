"""The results that a branch's calls carry of those before it (docs/reference/patterns.md, section 2). Pure."""

from app.protocol.branches import Branches
from app.protocol.policy import Policy
from app.protocol.values import Branch, Transaction
from holdfast.json_text import JsonText


def results_for(transaction: Transaction, branch: Branch) -> dict[str, JsonText | None]:
    """The results of the branches that this one names."""
    branches = Branches.of(transaction.branches)
    named = {name: branches.position(name) for name in branch.after}
    return {name: None if position is None else branches[position].result for name, position in named.items()}


def too_long_for(branches: Branches, position: int, policy: Policy) -> str | None:
    """Which branch could not be told this one's result, beside those of others; None if there is none."""
    for follower in branches.given_results_of(position):
        given = (branches[i].result for name in branches[follower].after if (i := branches.position(name)) is not None)
        if sum(len(result.encode()) for result in given if result is not None) > policy.results_bytes_max:
            limit = f"{policy.results_bytes_max} bytes (HOLDFAST_BODY_MAX_BYTES)"
            return f"the results that branch {branches[follower].name} would get are longer than {limit}"
    return None
