"""Which faults there are, how often each of them is in a seed, and what was counted.

Two levels: a seed draws which kinds are active, and for each of these how often; a call then draws whether it is hit.
"""

import random
from collections import Counter
from collections.abc import Set
from enum import StrEnum
from typing import Final


class Fault(StrEnum):
    """What can go wrong."""

    LOST_BEFORE = "message lost before the effect"
    LOST_AFTER = "message lost after the effect"
    DELAYED = "message delayed"
    DUPLICATED = "message duplicated"
    LATE_ANSWER = "answered after the caller gave up"
    SEVERED = "links stopped one by one, restored in random order"
    REPLICA_CRASH = "replica crashed"
    REPLICA_CRASH_AT_COMMIT = "replica crashed beside a commit"
    REPLICA_CRASH_AT_CALL = "replica crashed beside a call"
    REPLICA_FREEZE = "replica froze for longer than a lease"
    REPLICA_FREEZE_AT_COMMIT = "replica froze beside a commit"
    REPLICA_FREEZE_AT_CALL = "replica froze as a call was to leave"
    REPLICA_STOP = "replica stopped in order and started again"
    REPLICA_SKEW = "replica's machine has the wrong time, or its clock drifts"
    BATCH_FAILED = "batch failed before the commit"
    BATCH_UNDONE = "batch undone in favour of others"
    COMMIT_REPLY_LOST = "commit done, its reply lost"
    COMMIT_LOST = "commit not done, its reply lost"
    COMMIT_SLOW = "commit slow"
    READ_FAILED = "read failed"
    PARTICIPANT_CRASH = "participant crashed"
    PARTICIPANT_CRASH_AT_COMMIT = "participant crashed beside a commit"
    PARTICIPANT_FREEZE = "participant froze"
    PARTICIPANT_COMMIT_REPLY_LOST = "participant's commit done, its reply lost"
    PARTICIPANT_DATABASE_FAILED = "participant's database failed"
    PARTICIPANT_SLOW = "participant's database slow"
    PARTICIPANT_DRIFT = "participant's clock drifts"
    PARTICIPANT_JUMP = "participant's clock jumped"
    HANDLER_REFUSES = "handler refuses"
    HANDLER_FAILS = "handler fails"
    CLIENT_CANCELS = "client cancels"
    CLIENT_REPEATS = "client repeats its key at another replica"
    CLIENT_MISUSES_KEY = "client uses its key for another request"
    OPERATOR_RETRIES = "operator asks for a retry"
    STRANGER = "Try of a transaction that nobody has recorded"
    STRAY_BRANCH = "Try of a branch that its transaction doesn't have"
    ANOTHER_COORDINATOR = "participant asks another coordinator, which knows nothing"
    CANCELLED_EVERYWHERE = "client cancels at all replicas at once"
    NO_NOTIFICATIONS = "database without notifications"
    NOTIFICATION_LOST = "notification lost"
    REPLICA_PAUSE = "replica's machine stood still, and its clocks with it"
    REPLICA_PAUSE_AT_COMMIT = "replica's machine stood still as it was to commit"
    REPLICA_STEP = "replica's machine clock was set"


PER_SECOND: Final = frozenset(
    {
        Fault.SEVERED,
        Fault.REPLICA_CRASH,
        Fault.REPLICA_FREEZE,
        Fault.REPLICA_STOP,
        Fault.REPLICA_PAUSE,
        Fault.REPLICA_STEP,
        Fault.PARTICIPANT_CRASH,
        Fault.PARTICIPANT_FREEZE,
        Fault.PARTICIPANT_JUMP,
        Fault.OPERATOR_RETRIES,
        Fault.STRANGER,
        Fault.STRAY_BRANCH,
    }
)
"""These happen so many times a second; the others to such a share of what they can happen to."""
CALM_CHANCE: Final = 0.04
"""So many seeds have no faults at all: nothing may be repeated or taken over then."""
ACTIVE_CHANCE: Final = 0.35
RATES: Final = (0.01, 0.03, 0.1, 0.25)
RATES_PER_SECOND: Final = (0.1, 0.3, 0.8)


class Plan:
    """The faults of one seed. After `stop` none hits any more."""

    def __init__(self, seed: int, draw: random.Random, without: Set[Fault] = frozenset()) -> None:
        self._draw = draw
        levels = random.Random(f"{seed}:levels")  # apart, so that leaving a kind out changes no other kind's level
        is_calm = levels.random() < CALM_CHANCE

        self.on = True
        self.rates: dict[Fault, float] = {}
        for fault in Fault:
            active = levels.random() < ACTIVE_CHANCE
            rate = levels.choice(RATES_PER_SECOND if fault in PER_SECOND else RATES)
            if active and not is_calm and fault not in without:
                self.rates[fault] = rate
        self.fired: Counter[str] = Counter()

    @property
    def is_calm(self) -> bool:
        return not self.rates

    def stop(self) -> None:
        self.on = False

    def hits(self, fault: Fault) -> bool:
        """Whether this call is hit; counted when it is."""
        rate = self.rates.get(fault)
        if rate is None or not self.on or self._draw.random() >= rate:
            return False
        self.fired[fault] += 1
        return True

    def hits_once(self, fault: Fault) -> bool:
        """Whether what lasts for a whole seed applies; an even chance where it is active."""
        if fault not in self.rates or self._draw.random() < 0.5:
            return False
        self.fired[fault] += 1
        return True

    def per_second(self, fault: Fault) -> float:
        return self.rates.get(fault, 0.0) if self.on else 0.0

    def count(self, what: str) -> None:
        self.fired[what] += 1


class Branch(StrEnum):
    """Rare ways through the code; a run in which one was never taken has not tested it."""

    ADOPTED = "adopted by another replica"
    STALE = "overtaken: StaleError"
    TOO_LATE = "decision to confirm too late to be saved"
    REFUSED_AS_LATE = "decision to confirm refused by the database's clock"
    OVERTAKEN_CALL = "call of a replica that had been overtaken when it left"
    TOMBSTONE = "tombstone written by an empty cancel"
    LATE_TRY = "late Try refused by the fence"
    TOLD_CONFIRM = "inquiry answered confirm"
    TOLD_CANCEL = "inquiry answered cancel"
    TOLD_UNDECIDED = "inquiry answered undecided"
    TOLD_UNKNOWN = "inquiry answered unknown"
    TOLD_STRAY = "inquiry about a branch that a confirmed transaction doesn't have answered cancel"
    UNREACHABLE = "inquiry not answered, or by another coordinator"
    AMBIGUOUS = "commit ambiguous and found durable"
    REORDERED = "message overtaken by a later one"
    REPEATED = "call repeated after a crash or a lost answer"
    KEY_KNOWN = "idempotency key met again"
    KEY_CONFLICT = "idempotency key in use for another request"
    HUNG = "listed as hung"
    HUNG_UNDECIDED = "listed as hung before the decision"
    HOLD_EXPIRED = "cancelled because a hold ran out"
    TIMED_OUT = "cancelled because the deadline passed"
    REFUSED = "cancelled because a branch refused"
    REQUESTED = "cancelled on request"
    CONFIRMED = "confirmed"
    CONFLICT = "confirm came after a hold was given up at its hard limit, and was reported"
    REACQUIRED = "confirm came after a hold was given up, and acquired it again"
    RESOLVED = "settled by an operator, mixed"
    CORE = "came to rest while some stayed away"
    HUNG_FOR_THE_ABSENT = "listed as hung because its participant stayed away"
    HEARD = "command carried out through the inbox"
    OBJECTED = "command objected to through the inbox"
    TAKEN_FOR_A_COMMAND = "taken over from an owner that was silent to a command"
    REAPED = "hold released by the reaper"
