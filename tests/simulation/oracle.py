"""What is checked: at each call that leaves, and at the end by the rules of tests/harness/checker.py.

Evidence comes from what participants did and what clients were told; of the coordinator's tables only what a call
presupposes is looked at, the moment the call leaves.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any, Final

from app.protocol.values import Transaction
from holdfast.wire import Decision
from tests.harness import ledger
from tests.harness.checker import Violation, check
from tests.harness.evidence import Account, Effect, Evidence, HistoryCall, Hold, known_of
from tests.harness.ledger import CHANGES
from tests.simulation.databases import ACCOUNTS
from tests.simulation.faults import Branch
from tests.simulation.participant import GATEWAY
from tests.simulation.scheduler import EPOCH

DECISION: Final = "SELECT decision, decided_at, deadline FROM transactions WHERE id = ?"
COMMANDS_APPLIED: Final = (
    "SELECT commands.id, transaction_id, command, decision FROM commands "
    "JOIN transactions ON transactions.id = transaction_id WHERE outcome = 'applied'"
)
WAITING: Final = "SELECT id FROM commands WHERE transaction_id = ? AND outcome IS NULL"
LISTED: Final = "SELECT reason FROM hung_branches WHERE transaction_id = ? AND branch = ?"
SKEW_MAX_S: Final = 0.1
"""What a replica's clock is ahead of the database's at the most: its drift during a run."""
LAG_MAX_S: Final = 0.1
"""What it is behind at the most, once it has been checked: the way of an answer."""
PRECISION_S: Final = 0.001
CHECKED_WITHIN_S: Final = 2.0
"""Longer than the pause between two checks, and a check, once faults are off."""
RETENTION_S: Final = 30 * 86_400.0
Call = tuple[str, str, str, str]
"""Life of a replica, transaction, branch, operation."""
NOT_FOR_CONFLICTS: Final = frozenset(
    {
        "everything_finished",
        "nobody_refuses_what_was_decided",
        "participants_agree",
        "effects_are_the_outcome",
        "history_explains_the_end",
    }
)
"""Rules that a transaction breaks of which a hold was given up at its hard limit; it must be reported instead."""
NOT_FOR_THE_REACQUIRED: Final = frozenset({"each_effect_once", "participants_agree", "effects_are_the_outcome"})
"""Rules that do not count what was given up and acquired again: `_check_reacquired` does."""


class Oracle:
    """Collects violations of one seed."""

    def __init__(self, world: Any) -> None:
        self._world = world
        self.violations: list[Violation] = []
        self._decided: dict[str, str] = {}
        self._under_way: Counter[Call] = Counter()
        self._first_try_left: dict[tuple[str, str], float] = {}
        self._calls_of_the_overtaken: dict[tuple[str, str], Counter[Call]] = {}
        self._holds_for: dict[tuple[str, str], float] = {}
        self._finished_at: dict[str, float] = {}
        self._heard: set[str] = set()
        self._carried_out: set[str] = set()

    def violated(self, rule: str, transaction_id: str | None, what: str) -> None:
        self._world.tell("VIOLATION", rule, "", f"{what} {transaction_id or ''}")
        self.violations.append(Violation(rule, transaction_id, what))

    def call_leaves(self, life: str, transaction_id: str, branch: str, operation: str) -> Call:
        """Rules 1, 2, 3 and 6 of the contract: what a call presupposes, the moment it leaves."""
        call = (life, transaction_id, branch, operation)
        row = self._world.database.execute(DECISION, (transaction_id,)).fetchone()
        if row is None:
            self.violated("durable_before_the_call", transaction_id, f"{operation} left, and there is no record")
        elif operation == "try":
            self._first_try_left.setdefault((transaction_id, branch), self._world.loop.now)
        else:
            if row[0] != operation:
                self.violated("durable_before_the_call", transaction_id, f"{operation} left, durable is {row[0]}")
            if self._world.database.execute(LISTED, (transaction_id, branch)).fetchone() == ("try_unanswered",):
                self.violated("hung_for_a_reason", transaction_id, f"{branch}: {operation} left, and its Try hangs")
            if (life, transaction_id, branch, "try") in self._under_way:
                self.violated("cancel_waits_for_its_try", transaction_id, f"{branch}: {life} still waits for its Try")
            if self._decided.setdefault(transaction_id, operation) != operation:
                self.violated("decision_never_changes", transaction_id, f"now {operation}")
            elif operation == "confirm" and row[0] == operation:
                self._check_limits(transaction_id, row[1], row[2])
        if self._world.owners.get(transaction_id, life) != life:
            self._check_overtaken(call)
        self._under_way[call] += 1
        return call

    def decided(self, transaction: Transaction, at: float) -> None:
        """A decision has become durable, at this time by the clock of the replica that made it."""
        if transaction.decision is Decision.CONFIRM:
            holds = [branch.hold_until for branch in transaction.branches if branch.hold_until is not None]
            if at >= min([transaction.deadline, *holds]):
                self.violated("durable_in_time", transaction.id, "confirm became durable after the deadline or a hold")
            self._check_limits(transaction.id, at, transaction.deadline)
            self._check_holds(transaction)

    def _check_holds(self, transaction: Transaction) -> None:
        """In truth, whatever anybody's clock says: no hold has ended when the database lets the decision pass."""
        now = self._world.database_time() - EPOCH
        for branch in transaction.branches:
            first = self._first_try_left.get((transaction.id, branch.name))
            ttl_s = self._holds_for.get((transaction.id, branch.name))
            if first is not None and ttl_s is not None and now > first + ttl_s + PRECISION_S:
                late_s = now - first - ttl_s
                self.violated("no_confirm_after_a_holds_end", transaction.id, f"{branch.name}: {late_s:.2f} s after it")

    def finished(self, transaction_id: str) -> None:
        """Its end has become durable."""
        self._finished_at[transaction_id] = self._world.loop.now

    def purged(self, ids: Iterable[str]) -> None:
        """Records have been deleted."""
        for id_ in ids:
            if self._world.loop.now < self._finished_at.get(id_, 0.0) + RETENTION_S:
                self.violated("no_purge_before_its_time", id_, "its record is gone, with its idempotency key")

    def check_clocks(self) -> None:
        """Whatever happened to its machine's clock, a replica's own is the database's."""
        for replica in self._world.replicas:
            since = max(self._world.healed_at, replica.ready_at)
            if replica.serves and self._world.loop.now > since + CHECKED_WITHIN_S:
                ahead_s = replica.parts.clock() - EPOCH - self._world.loop.now
                if not -LAG_MAX_S <= ahead_s <= SKEW_MAX_S:
                    self.violated("clocks_agree", None, f"{replica.name} is {ahead_s:.2f} s ahead")

    def is_confirmed(self, transaction_id: str) -> bool:
        """Whether confirm is durably decided."""
        row = self._world.database.execute(DECISION, (transaction_id,)).fetchone()
        return row is not None and row[0] == "confirm"

    def took(self, life: str, transaction_id: str) -> None:
        """It has the transaction now, perhaps again: what it did when it was overtaken is over."""
        self._calls_of_the_overtaken.pop((life, transaction_id), None)

    def _check_overtaken(self, call: Call) -> None:
        """Whoever was overtaken finds out by the save that precedes a call: what was saved by then may still leave."""
        self._world.plan.count(Branch.OVERTAKEN_CALL)
        calls = self._calls_of_the_overtaken.setdefault(call[:2], Counter())
        calls[call] += 1
        if calls[call] > 1:
            self.violated("the_overtaken_stop", call[1], f"{call[0]} calls {call[2]} again")

    def heard(self, transaction_id: str, command_id: str) -> None:
        """A step was saved that carries out a command, or objects to it: the only one."""
        if command_id in self._heard:
            self.violated("a_command_is_heard_once", transaction_id, command_id)
        self._heard.add(command_id)

    def taken_for_a_command(self, before: str, transaction_id: str) -> None:
        """A command took a transaction from this life: which was not working on it, or had been asked in vain."""
        waiting = self._world.database.execute(WAITING, (transaction_id,)).fetchone()
        owner = next((each for each in self._world.replicas if each.life and each.life.name == before), None)
        if waiting is not None or owner is None or not owner.life.is_up or owner.parts is None:
            return
        run = owner.parts.coordinator.runs.active(transaction_id)
        if run is not None and run.saved.wake_at - EPOCH - self._world.loop.now > SKEW_MAX_S:
            self.violated("a_command_steals_nothing", transaction_id, f"{before} was working on it")

    def check_commands(self) -> None:
        """After each commit: what a command's outcome says is durable with it."""
        for id_, transaction_id, command, decision in self._world.database.execute(COMMANDS_APPLIED):
            if id_ in self._carried_out:
                continue
            self._carried_out.add(id_)
            if '"cancel"' in command and decision != "cancel":
                self.violated("a_command_has_its_effect", transaction_id, f"cancelled, and durable is {decision}")

    def call_ends(self, call: Call) -> None:
        self._under_way[call] -= 1
        if not self._under_way[call]:
            del self._under_way[call]

    def held(self, transaction_id: str, branch: str, headers: list[tuple[bytes, bytes]]) -> None:
        """A Try was answered: for how long its participant said that it holds."""
        said = dict(headers).get(b"tcc-hold-ttl")
        if said is not None:
            self._holds_for[transaction_id, branch] = float(said)

    def _check_limits(self, transaction_id: str, decided_at: float, deadline: float) -> None:
        """Confirm is decided before the deadline, and while every hold lasts."""
        if decided_at > deadline:
            self.violated("confirmed_in_time", transaction_id, "confirm was decided after the deadline")
        for (id_, branch), first in self._first_try_left.items():
            ttl_s = self._holds_for.get((id_, branch)) if id_ == transaction_id else None
            if ttl_s is not None and decided_at - EPOCH - SKEW_MAX_S > first + ttl_s:
                late_s = decided_at - EPOCH - first - ttl_s
                self.violated("confirmed_in_time", transaction_id, f"{branch}: {late_s:.2f} s after its hold's end")

    def check_end(self, listed: list[Any], hung: set[str], calls: dict[str, list[Any]]) -> None:
        """Everything that can be said when all is over."""
        world = self._world
        effects = [*world.gateway.effects]
        holds: list[Hold] = []
        accounts: list[Account] = []
        conflicts: set[str] = set()
        again: set[tuple[str, str]] = set()
        for participant in world.participants:
            connection = world.databases[participant.name]
            rows = connection.execute(
                "SELECT transaction_id, branch, operation, kind, account, amount, at FROM effects ORDER BY position"
            )
            for id_, branch, operation, kind, account, amount, at in rows:
                effects.append(
                    Effect(
                        participant=participant.name,
                        transaction_id=id_,
                        branch=branch,
                        operation=operation,
                        kind=kind,
                        account=account,
                        amount=amount,
                        at=at,
                    )
                )
            rows = connection.execute("SELECT transaction_id, branch, state, acquisition FROM holdfast_branches")
            for id_, branch, state, acquisition in self._without_strangers(rows):
                if acquisition > 1:
                    again.add((id_, branch))
                if state == "expired":
                    conflicts.add(id_)
                elif state not in ("confirmed", "cancelled"):
                    holds.append(Hold(participant=participant.name, transaction_id=id_, branch=branch, state=state))
            if participant.name != GATEWAY:
                accounts += participant.accounts(connection)
        if GATEWAY in world.participant_names:
            accounts += [
                Account(participant=GATEWAY, account=number, **columns)
                for number, columns in world.gateway.accounts.items()
            ]
        strangers = world.strangers
        effects = [effect for effect in effects if (effect.transaction_id, effect.branch) not in strangers]
        known = {item["id"]: replace(known_of(item), hung=item["hung"] or item["id"] in hung) for item in listed}
        conflicts = {id_ for id_ in conflicts if id_ in known and known[id_].decision == "confirm"}
        total = ledger.OPENING_BALANCE * ACCOUNTS * len(world.participants)
        evidence = Evidence(
            opening_balance=ledger.OPENING_BALANCE,
            opening_total=total + sum(_made(effect) for effect in effects if effect.transaction_id in conflicts),
            requests=[each for each in world.requests if (each.transaction_id, each.branch) not in strangers],
            effects=effects,
            accounts=accounts,
            holds=holds,
            notes=sorted(world.notes, key=lambda note: note.seen_at),
            known=known,
            histories={
                id_: [HistoryCall(**{name: call[name] for name in ("branch", "operation", "answer")}) for call in made]
                for id_, made in calls.items()
            },
        )
        for violation in check(evidence):
            if violation.transaction_id in conflicts and violation.rule in NOT_FOR_CONFLICTS:
                continue
            if violation.rule in NOT_FOR_THE_REACQUIRED and any(violation.transaction_id == id_ for id_, _ in again):
                continue
            self.violated(violation.rule, violation.transaction_id, violation.what)
        self._check_conflicts(conflicts, listed)
        self._check_reacquired(again - {(id_, branch) for id_, branch in again if id_ in conflicts}, effects)
        self._check_calm()
        for item in listed:
            self._check_audit(item)

    def _without_strangers(self, rows: Iterable[Any]) -> Iterator[Any]:
        """The rows of what was recorded. Nobody will ever confirm the others: their participants give them back."""
        for row in rows:
            id_, branch, state, _ = row
            if (id_, branch) not in self._world.strangers:
                yield row
            elif state not in ("cancelled", "expired"):
                self.violated("strangers_are_released", id_, f"{branch} is {state}")

    def _check_conflicts(self, conflicts: set[str], listed: list[Any]) -> None:
        """A hold that was given up and a confirm that came late: reported, never silent."""
        for item in listed:
            if item["id"] not in conflicts:
                continue
            self._world.plan.count(Branch.CONFLICT)
            resolutions = [branch["resolution"] for branch in item["branches"] if branch["resolution"]]
            if item["outcome"] is None:
                reported = item["hung"] and item["hung_reason"] == "confirm_refused"
            else:
                reported = item["outcome"] == "mixed" and bool(resolutions)
            if not reported:
                self.violated("conflicts_are_reported", item["id"], "a hold was given up, and nothing says so")
            for resolution in resolutions:
                if not all(resolution[what] for what in ("as", "by", "at", "reason")):
                    self.violated("audit_is_complete", item["id"], f"resolved, but who, when or why: {resolution}")

    def _check_reacquired(self, again: set[tuple[str, str]], effects: list[Effect]) -> None:
        """A hold that was given up and acquired again: given back once for each time but the last."""
        for id_, branch in again:
            self._world.plan.count(Branch.REACQUIRED)
            done = Counter(
                effect.operation for effect in effects if (effect.transaction_id, effect.branch) == (id_, branch)
            )
            if done["confirm"] > 1 or done["try"] != done["cancel"] + done["confirm"]:
                self.violated("reacquired_once", id_, f"{branch} did {dict(done)}")

    def _check_calm(self) -> None:
        """Where nothing goes wrong nothing is repeated, and nobody takes anything from anybody."""
        if self._world.plan.is_calm:
            for what in (Branch.REPEATED, Branch.STALE, Branch.ADOPTED):
                if self._world.plan.fired[what]:
                    self.violated("calm_seeds_are_calm", None, what)

    def _check_audit(self, item: Any) -> None:
        """Who decided, when and why."""
        id_, reason = item["id"], item["reason"]
        if item["decision"] != "undecided" and item["decided_at"] is None:
            self.violated("audit_is_complete", id_, "decided, and nothing says when")
        if item["outcome"] is not None and item["finished_at"] is None:
            self.violated("audit_is_complete", id_, "ended, and nothing says when")
        if item["decision"] == "cancel" and (reason is None or not reason["code"]):
            self.violated("audit_is_complete", id_, "cancelled, and nothing says why")
        if reason is not None and reason["code"] == "refused" and not (reason["branch"] and reason["detail"]):
            self.violated("audit_is_complete", id_, "refused, and nothing says by whom and why")


def _made(effect: Effect) -> int:
    """What an effect adds to all that there is."""
    changes = CHANGES[effect.kind, effect.operation]
    return effect.amount * (changes.get("balance", 0) + changes.get("held", 0))
