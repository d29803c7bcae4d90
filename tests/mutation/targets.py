"""Which modules are mutated, and which tests each of their mutants has to get past.

The stages of a module are in the order in which they cost: what is quick and finds most comes first, and only what
survives one stage meets the next. Left out is what only a database server can tell, because none is started here:
notifications between replicas, and migrations.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.mutation.runs import Stage


@dataclass(frozen=True, slots=True)
class Target:
    """A module, and its tests. The state machines are tested by `make mutants`, the others by `make mutants-all`."""

    path: str
    stages: tuple[Stage, ...]
    is_state_machine: bool = False

    @property
    def score_min(self) -> float:
        """The goal in per cent: the others have time limits and sizes of batches, whose exact value no test tells."""
        return 95.0 if self.is_state_machine else 80.0

    @property
    def module(self) -> str:
        return ".".join(Path(self.path).with_suffix("").parts).removeprefix("participants.")


def _stages(*arguments: str) -> tuple[Stage, ...]:
    return tuple(Stage(each) for each in arguments)


_STEPS: Final = _stages(
    "tests/protocol/test_steps.py",
    "tests/protocol/test_tables.py tests/protocol/test_properties.py -k 'not whatever'",
)
_RUN: Final = _stages(
    "tests/engine/test_commands.py tests/engine/test_begin.py tests/engine/test_waiters.py",
    "tests/engine/test_overtaken.py tests/engine/test_stop.py tests/engine/test_run.py tests/engine/test_recovery.py",
    "tests/engine/test_replicas.py tests/engine/test_frozen.py",
)
_RECOVERY: Final = _stages(
    "tests/engine/test_recovery.py",
    "tests/engine/test_overtaken.py tests/engine/test_stop.py tests/engine/test_run.py",
)
_JOURNAL: Final = _stages("tests/storage/test_group_commit.py", "tests/engine/test_begin.py")
_STATEMENTS: Final = _stages(
    "tests/storage/test_writes.py",
    "tests/storage/test_purge.py tests/storage/test_queries.py tests/storage/test_group_commit.py",
    "tests/storage/test_round_trip.py tests/storage/test_query_plans.py tests/engine/test_begin.py",
)
_FENCE: Final = _stages(
    "tests/participant/test_fence_rows.py tests/participant/test_participant.py",
    "tests/participant/test_reaper.py tests/participant/test_interleavings.py tests/participant/test_forgotten.py",
    "tests/participant/test_two_step.py tests/participant/test_cancelled_calls.py",
    "tests/participant/test_crashes.py",
)
_REAPER: Final = _stages(
    "tests/participant/test_reaper.py tests/participant/test_inquiry.py",
    "tests/participant/test_two_step.py tests/participant/test_slow_handlers.py -k 'reaper or not_now'",
    "tests/participant/test_reaper_lives.py",
)
_CALLER: Final = _stages("tests/calling/test_caller.py", "tests/calling/test_transport_faults.py")
_TRANSPORT: Final = _stages(
    "tests/calling/test_idle_connections.py tests/calling/test_transport.py", "tests/calling/test_transport_faults.py"
)

TARGETS: Final = (
    Target(
        "participants/holdfast/fence/table.py", _stages("tests/participant/test_fence_table.py"), is_state_machine=True
    ),
    *(
        Target(f"participants/holdfast/fence/{name}.py", _stages("tests/participant/test_step_tables.py"))
        for name in ("check", "compensable", "pivot", "retryable", "steps", "stray")
    ),
    Target("app/protocol/branches.py", (*_stages("tests/protocol/test_branches.py"), *_STEPS), is_state_machine=True),
    *(
        Target(f"app/protocol/{name}.py", _STEPS, is_state_machine=True)
        for name in ("backoff", "hung", "intents", "kinds", "messages", "pivots", "results", "steps")
    ),
    Target("app/protocol/identity.py", _stages("tests/protocol/test_identity.py")),
    Target("app/protocol/replacing.py", _stages("tests/protocol/test_replacing.py")),
    Target("participants/holdfast/json_text.py", _stages("tests/fuzz/test_json_text.py")),
    *(Target(f"app/engine/{name}.py", _RUN) for name in ("run", "coordinator")),
    Target("app/engine/recovery.py", _RECOVERY),
    Target("app/storage/group_commit.py", _JOURNAL),
    Target("app/storage/transactions.py", _STATEMENTS),
    *(Target(f"app/storage/{name}.py", _stages("tests/storage/test_purge.py")) for name in ("purge", "leases")),
    Target("app/calling/caller.py", _CALLER),
    Target("app/calling/transport.py", _TRANSPORT),
    Target("app/calling/slots.py", _stages("tests/calling/test_slots.py tests/calling/test_caller.py")),
    Target("app/calling/connector.py", _stages("tests/calling/test_connector.py")),
    Target("app/calling/resolver.py", _stages("tests/calling/test_resolver.py")),
    Target("participants/holdfast/fence/execution.py", _FENCE),
    Target("participants/holdfast/participant/reaper.py", _REAPER),
    Target("app/engine/waiters.py", _RUN),
    *(
        Target(f"app/storage/{name}.py", _STATEMENTS)
        for name in (
            *("bulk", "calls", "errors", "expressions", "hung_branches", "mapping", "branches"),
            *("coordinator_id", "participants", "queries", "tables"),
        )
    ),
    Target(
        "app/storage/engines.py", _stages("tests/storage/test_group_commit.py", "tests/storage/test_query_plans.py")
    ),
    Target("app/calling/allowlist.py", _stages("tests/fuzz/test_parsers.py tests/api/test_settings.py")),
    Target("app/calling/registry.py", _stages("tests/api/test_participants.py", "tests/engine/test_begin.py")),
    Target("app/calling/registration.py", _stages("tests/api/test_participants.py")),
    Target("participants/holdfast/participant/inquiry.py", _REAPER),
    Target("participants/holdfast/fence/rows.py", _FENCE),
)
