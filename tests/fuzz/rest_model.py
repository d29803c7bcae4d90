"""What docs/reference/protocol.md promises about the REST API, as a model small enough to be checked by reading.

The model is told what participants do and what clients ask, and says what must be answered and where each transaction
comes to rest. Written from the contract alone: it knows nothing of the code, of time or of HTTP.
"""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final

Json = dict[str, Any]


class Effect(StrEnum):
    """What a participant's answer comes to (section 4)."""

    ACCEPTS = "accepts"
    REFUSES = "refuses"
    UNANSWERED = "unanswered"


@dataclass
class Behaviour:
    """What a participant does with a Try, and what with a Confirm or Cancel."""

    trying: Effect = Effect.ACCEPTS
    ending: Effect = Effect.ACCEPTS


PHASES: Final = {
    "undecided": ("trying", "trying"),
    "confirm": ("confirming", "confirmed"),
    "cancel": ("cancelling", "cancelled"),
}
"""By decision: before the end, and at it."""
FINAL: Final = {"confirmed", "cancelled", "resolved"}


@dataclass
class Branch:
    name: str
    service: str
    """Whose behaviour counts."""
    participant: str | None
    """The same, when it is registered; None when the branch has URLs of its own."""
    phase: str = "pending"
    resolved_as: str | None = None
    hung_reasons: set[str] = field(default_factory=set)
    """Why it may be listed as hung; none: it isn't."""


@dataclass
class Transaction:
    """One transaction: what was asked, and where it stands when nothing moves any more."""

    request: Json
    branches: list[Branch]
    decision: str = "undecided"
    reasons: set[tuple[str, str | None]] = field(default_factory=set)
    """(code, branch) that may be given for the decision: of two refusals either may be the first."""
    id: str = ""

    @property
    def finished(self) -> bool:
        return self.decision != "undecided" and all(branch.phase in FINAL for branch in self.branches)

    @property
    def phase(self) -> str:
        return PHASES[self.decision][self.finished]

    @property
    def outcome(self) -> str | None:
        if not self.finished:
            return None
        mixed = any(branch.resolved_as not in (None, self.phase) for branch in self.branches)
        return "mixed" if mixed else self.phase

    @property
    def hung(self) -> bool:
        return any(branch.hung_reasons for branch in self.branches)

    def branch(self, name: str) -> Branch | None:
        return next((branch for branch in self.branches if branch.name == name), None)

    def settle(self, behaviours: dict[str, Behaviour], *, overdue: bool = False) -> None:
        """Go on until nothing moves: section 2. `overdue`: the deadline passes."""
        if self.decision == "undecided":
            self._try(behaviours)
        if self.decision == "undecided" and overdue:
            self.cancel("timed_out")
        if self.decision != "undecided":
            for branch in self.branches:
                self._end(branch, behaviours[branch.service].ending)

    def cancel(self, code: str) -> None:
        assert self.decision == "undecided"
        self.decision, self.reasons = "cancel", {(code, None)}

    def resolve(self, branch: Branch, settled: str) -> None:
        branch.phase, branch.resolved_as, branch.hung_reasons = "resolved", settled, set()
        if not self.reasons:
            self.reasons = {("operator", branch.name)}

    def _try(self, behaviours: dict[str, Behaviour]) -> None:
        for branch in self.branches:
            if branch.phase == "held":
                continue
            effect = behaviours[branch.service].trying
            branch.phase = {Effect.ACCEPTS: "held", Effect.REFUSES: "refused", Effect.UNANSWERED: "trying"}[effect]
            if branch.phase != "held" and self.request.get("try_order") == "sequential":
                break
        refused = {branch.name for branch in self.branches if branch.phase == "refused"}
        if refused:
            self.decision, self.reasons = "cancel", {("refused", name) for name in refused}
        elif all(branch.phase == "held" for branch in self.branches):
            self.decision = "confirm"

    def _end(self, branch: Branch, effect: Effect) -> None:
        if branch.phase in FINAL:
            return
        never_tried = self.decision == "cancel" and branch.phase == "pending"
        if effect is Effect.ACCEPTS or never_tried:
            branch.phase = "confirmed" if self.decision == "confirm" else "cancelled"
            branch.hung_reasons = set()
            return
        branch.phase = "confirming" if self.decision == "confirm" else "cancelling"
        branch.hung_reasons.add(f"{self.decision}_{'refused' if effect is Effect.REFUSES else effect}")

    def differs(self, resource: Json) -> str | None:
        """How the resource is not what it must be; None when it is."""
        expected: Json = {"id": self.id, "phase": self.phase, "decision": self.decision, "outcome": self.outcome}
        expected |= {"hung": self.hung, **{name: self.request.get(name) for name in ("name", "reference")}}
        for member, value in expected.items():
            if resource[member] != value:
                return f"{member} is {resource[member]!r}, not {value!r}"
        if (resource["finished_at"] is not None) != self.finished:
            return f"finished_at is {resource['finished_at']}"
        reason = resource["reason"]
        if (reason is None) != (not self.reasons) or (reason and not self._may_be(reason)):
            return f"reason is {reason}, not of {self.reasons}"
        for branch, there in zip(self.branches, resource["branches"], strict=True):
            if (branch.name, branch.participant, branch.phase) != tuple(
                there[m] for m in ("name", "participant", "phase")
            ):
                return f"branch {there['name']} is {there['phase']}, not {branch.phase}"
            if branch.hung_reasons and there["hung_reason"] not in branch.hung_reasons:
                return f"branch {there['name']} hangs by {there['hung_reason']}, not of {branch.hung_reasons}"
        return None

    def _may_be(self, reason: Json) -> bool:
        return any(reason["code"] == code and branch in (None, reason["branch"]) for code, branch in self.reasons)


@dataclass
class Model:
    """The coordinator: what is registered, begun, and known by which key."""

    behaviours: dict[str, Behaviour] = field(default_factory=dict)
    registry: dict[str, Json] = field(default_factory=dict)
    transactions: list[Transaction] = field(default_factory=list)
    by_key: dict[str, Transaction] = field(default_factory=dict)

    @property
    def unfinished(self) -> list[Transaction]:
        return [each for each in self.transactions if not each.finished]

    def begun_by(self, request: Json) -> Transaction:
        """What a request that is taken begins; not yet settled."""
        branches = []
        for each in request["branches"]:
            participant = each.get("participant")
            service = participant or each["endpoints"]["try"].split("/")[3]
            branches.append(Branch(name=each.get("name", participant), service=service, participant=participant))
        return Transaction(request=request, branches=branches)

    def unknown_participants(self, request: Json) -> set[str]:
        named = {each["participant"] for each in request["branches"] if "participant" in each}
        return named - self.registry.keys()

    def is_in_use(self, participant: str) -> bool:
        return any(branch.participant == participant for each in self.unfinished for branch in each.branches)

    def matching(self, filters: Json) -> list[Transaction]:
        """What a list with these filters holds (section 3); every filter must match."""

        def matches(each: Transaction) -> bool:
            values: Json = {"phase": each.phase, "hung": str(each.hung).lower()}
            values |= {name: each.request.get(name) for name in ("name", "reference")}
            members = {branch.participant for branch in each.branches}
            return all(
                value in members if name == "participant" else values[name] == value for name, value in filters.items()
            )

        return [each for each in self.transactions if matches(each)]

    def hanging(self, filters: Json) -> list[Transaction]:
        """What the list of the hung ones holds: those of this name, of which a branch of this participant hangs."""

        def matches(each: Transaction) -> bool:
            hanging = {branch.participant for branch in each.branches if branch.hung_reasons}
            name, participant = filters.get("name"), filters.get("participant")
            return (name is None or name == each.request.get("name")) and (
                participant is None or participant in hanging
            )

        return [each for each in self.transactions if each.hung and matches(each)]
