"""What the state machine itself costs: a transaction of many branches, from the begin to the end, one step an answer.

    python -m tests.benchmark.advance [branches]

No database, no participant, no event loop: prints the CPU time inside `advance`, the best of some runs. It bounds how
long one large transaction can keep all others waiting. tests/protocol/test_branches.py counts the same work.
"""

import sys
import time
from typing import Final

from app.protocol.messages import Answered, Call
from app.protocol.steps import advance
from app.protocol.values import Branch, Outcome, Transaction, TryOrder, in_order
from app.settings import Settings
from holdfast.wire import Answer

BRANCHES: Final = 1_000
RUNS: Final = 5
POLICY: Final = Settings().policy


def cpu_s(branches: int, try_order: TryOrder) -> tuple[float, int]:
    """Seconds of CPU inside `advance`, and how many steps they were."""
    transaction = Transaction(
        id="t",
        created_at=0.0,
        deadline=1e6,
        branches=in_order(tuple(Branch(name=f"b{n}", participant="p") for n in range(branches)), try_order),
        try_order=try_order,
    )
    under_way: list[Call] = []
    inputs: tuple[Answered, ...] = ()
    spent_s, steps = 0.0, 0
    while not transaction.finished:
        began = time.process_time()
        step = advance(transaction, inputs, steps / 1e4, POLICY)
        spent_s += time.process_time() - began
        steps += 1
        transaction = step.transaction
        under_way += step.calls
        if under_way:
            call = under_way.pop(0)
            answered = Answered(
                branch=call.branch.name, operation=call.operation, attempt=call.attempt, answer=Answer.SUCCEEDED
            )
            inputs = (answered,)
    assert transaction.outcome is Outcome.CONFIRMED
    return spent_s, steps


def main() -> None:
    branches = int(sys.argv[1]) if len(sys.argv) > 1 else BRANCHES
    for try_order in TryOrder:
        spent_s, steps = min(cpu_s(branches, try_order) for _ in range(RUNS))
        each_us = spent_s / steps * 1e6
        print(f"{branches} branches, {try_order}: {spent_s * 1e3:.1f} ms in {steps} steps, {each_us:.0f} us each")


if __name__ == "__main__":
    main()
