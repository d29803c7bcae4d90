"""The running coordinator against the model in rest_model.py: every answer, and where each transaction rests."""

import asyncio
import json
import shutil
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar, Final

import httpx
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from app.api.problems import CATALOGUE
from tests.fuzz.rest_model import FINAL, Behaviour, Effect, Json, Model, Transaction
from tests.harness.budget import TIMES
from tests.harness.coordinator_app import Received, Service, base_url, endpoints, running, until

REGISTERED: Final = ("p0", "p1", "p2")
INLINE: Final = ("u0", "u1")
PATIENT: Final = {"Prefer": "wait=20"}
NOBODY: Final = "00000000-0000-7000-8000-000000000000"
LIMITS: Final[Json] = {
    "retry_base_s": 0.005,
    "retry_cap_s": 0.2,
    "call_timeout_s": 0.1,
    "hung_attempts": 2,
    "wait_default_s": 0,
    "shutdown_timeout_s": 0.001,
    "branches_max": 4,
    "timeout_default_s": 600,
}


async def silent(_: Received) -> httpx.Response:
    await asyncio.Event().wait()
    raise AssertionError


def says(status: int, content: bytes = b"", **headers: str) -> Callable[[Received], Awaitable[httpx.Response]]:
    async def react(_: Received) -> httpx.Response:
        return httpx.Response(status, content=content, headers={k.replace("_", "-"): v for k, v in headers.items()})

    return react


async def lost(_: Received) -> httpx.Response:
    raise httpx.ReadError("reset")


REACTIONS: Final = {
    Effect.ACCEPTS: [says(200, b'{"hold_id": 1}'), says(204), says(200, b"\xff{garbage"), says(299, b"[" * 1000)],
    Effect.REFUSES: [
        says(409, b'{"detail": "sold out"}', content_type="application/problem+json"),
        says(404),
        says(422, b"\x00\xff\r\n" * 500, retry_after="\xff"),
        says(410, b'{"detail": {"a": ["\\ud800"]}}'),
    ],
    Effect.UNANSWERED: [says(503), says(302, location="http://[::1]/"), says(202), says(429, b"{"), silent, lost],
}
effects = st.sampled_from(Effect)
names = st.sampled_from([None, "order", "Order", "größe 7"])
references = st.sampled_from([None, "r-1", "r-2"])
payloads = st.sampled_from([{}, None, {"a": [1, 2.5, "\0", "\U0001f600"]}, 10**300, "x" * 300])
branches = st.lists(
    st.tuples(st.sampled_from(REGISTERED + INLINE), payloads),
    min_size=1,
    max_size=3,
    unique_by=lambda branch: branch[0],
)
keys = st.sampled_from([None, "k-1", 'k"2', "k\\3", "k 4"])
FAULTY: Final[list[tuple[Json, str]]] = [
    ({"branches": []}, "invalid"),
    ({"branches": [{"participant": "p0"}] * 2}, "invalid"),
    ({"branches": [{"name": f"b{n}", "endpoints": endpoints("u0")} for n in range(5)]}, "invalid"),
    ({"branches": [{"participant": "p0", "colour": "red"}]}, "invalid"),
    ({"branches": [{"name": "b", "endpoints": endpoints("u0")}], "timeout_s": 2_592_001}, "invalid"),
    ({"branches": [{"name": "b", "endpoints": endpoints("u0")}], "name": ""}, "invalid"),
    ({"branches": [{"participant": "nobody"}]}, "unknown-participant"),
    ({"branches": [{"name": "b", "endpoints": endpoints("u0") | {"try": "http://a.b/"}}]}, "endpoint-not-allowed"),
]


class RestMachine(RuleBasedStateMachine):
    """Each rule is a request or a change of what participants do; afterwards all that moves comes to rest."""

    template: ClassVar[Path]
    made: ClassVar[int] = 0

    def __init__(self) -> None:
        super().__init__()
        RestMachine.made += 1
        database = self.template.with_name(f"{RestMachine.made}.db")
        shutil.copy(self.template, database)
        self.model = Model(behaviours={name: Behaviour() for name in REGISTERED + INLINE})
        self.turn = 0
        self.runner = asyncio.Runner()
        self.context = running(f"sqlite:///{database}", **LIMITS)
        self.service: Service = self.run(self.context.__aenter__())
        for name in REGISTERED + INLINE:
            for operation in ("try", "confirm", "cancel"):
                self.service.participants.script(f"/{name}/{operation}", [self.react])

    def teardown(self) -> None:
        self.run(self.context.__aexit__(None, None, None))
        left = self.run(self.tasks())
        self.runner.close()
        assert left == [], "the coordinator has left tasks behind"

    async def tasks(self) -> list[str]:
        return [task.get_name() for task in asyncio.all_tasks() if task is not asyncio.current_task()]

    def run(self, work: Any) -> Any:
        return self.runner.run(work)

    async def react(self, received: Received) -> httpx.Response:
        """Whatever comes to the wanted effect; not always the same."""
        _, service, operation = received.path.split("/")
        behaviour = self.model.behaviours[service]
        reactions = REACTIONS[behaviour.trying if operation == "try" else behaviour.ending]
        self.turn += 1
        return await reactions[self.turn % len(reactions)](received)

    def ask(self, method: str, path: str, **request: Any) -> httpx.Response:
        """The answer, which is one of the documented ones and tells nothing that is nobody's business."""
        answer: httpx.Response = self.run(self.service.client.request(method, path, **request))
        assert answer.status_code < 500, answer.text
        for word in ("Traceback", "SELECT", "sqlite", 'File "'):
            assert word not in answer.text
        return answer

    def problem(self, answer: httpx.Response, slug: str) -> Json:
        assert answer.headers["content-type"] == "application/problem+json"
        body: Json = answer.json()
        assert (answer.status_code, body["type"]) == (CATALOGUE[slug].status, f"/problems/{slug}"), body
        return body

    def come_to_rest(self, *which: Transaction) -> None:
        """Let the model and the coordinator go on until nothing moves, and compare where they are."""
        for each in which or self.model.unfinished:
            each.settle(self.model.behaviours)
            self.run(self.same(each))

    async def same(self, expected: Transaction) -> None:
        why: str | None = None
        path, headers = f"/v1/transactions/{expected.id}", PATIENT if expected.finished else {}

        async def look() -> bool:
            nonlocal why, headers
            why = expected.differs((await self.service.client.get(path, headers=headers)).json())
            headers = headers or {"Prefer": "wait=0.01"}  # what doesn't end must not be looked at all the time
            return why is None

        try:
            await until(look)
        except TimeoutError:
            raise AssertionError(f"{expected.request} never got there: {why}") from None

    # --- participants --------------------------------------------------------------------------------------------

    @initialize(minds=st.tuples(effects, effects), key=keys)
    def there_is_something(self, minds: tuple[Effect, Effect], key: str | None) -> None:
        """Of each kind one, so that there is what commands and lists are about: confirmed, cancelled, and as drawn."""
        for name in REGISTERED[1:]:
            self.register(name, None, 64)
        for name, mind in (
            ("p2", (Effect.ACCEPTS, Effect.ACCEPTS)),
            ("u0", (Effect.REFUSES, Effect.ACCEPTS)),
            ("p1", minds),
        ):
            self.participant_changes_its_mind(name, *mind)
            self.begin(
                [(name, {})],
                "parallel",
                "order",
                "r-1",
                key if name == "p1" else name,
                "record",
                waits=True,
                overdue=False,
            )

    @rule(name=st.sampled_from(REGISTERED), timeout_s=st.sampled_from([None, 0.1]), slots=st.sampled_from([1, 64]))
    def register(self, name: str, timeout_s: float | None, slots: int) -> None:
        body = {"base_url": base_url(name), "concurrency_max": slots, "call_timeout_s": timeout_s}
        answer = self.ask("PUT", f"/v1/participants/{name}", json=body)
        assert answer.status_code == (200 if name in self.model.registry else 201)
        self.model.registry[name] = {"name": name, **body}
        assert answer.json() == self.model.registry[name]

    @rule(
        name=st.sampled_from(["p0", "-", "a b", "x" * 65]),
        body=st.sampled_from([{}, {"base_url": "http://a.b/"}, {"base_url": 1}]),
    )
    def register_in_vain(self, name: str, body: Json) -> None:
        is_forbidden = name == "p0" and body.get("base_url") == "http://a.b/"
        answer = self.ask("PUT", f"/v1/participants/{name}", json=body)
        self.problem(answer, "endpoint-not-allowed" if is_forbidden else "invalid")

    @rule(name=st.sampled_from(REGISTERED))
    def unregister(self, name: str) -> None:
        answer = self.ask("DELETE", f"/v1/participants/{name}")
        if name not in self.model.registry:
            self.problem(answer, "participant-not-found")
        elif self.model.is_in_use(name):
            self.problem(answer, "participant-in-use")
        else:
            assert answer.status_code == 204
            del self.model.registry[name]

    @rule(service=st.sampled_from(REGISTERED + INLINE), trying=effects, ending=effects)
    def participant_changes_its_mind(self, service: str, trying: Effect, ending: Effect) -> None:
        self.model.behaviours[service] = Behaviour(trying, ending)
        for each in self.model.unfinished:
            self.ask("POST", f"/v1/admin/transactions/{each.id}/retry")  # it may have ended just now
        self.come_to_rest()

    @precondition(lambda self: self.model.unfinished)
    @rule()
    def all_participants_are_well(self) -> None:
        for service, behaviour in self.model.behaviours.items():
            if behaviour != Behaviour():
                self.participant_changes_its_mind(service, Effect.ACCEPTS, Effect.ACCEPTS)
        assert self.model.unfinished == []

    # --- initiators ----------------------------------------------------------------------------------------------

    def request(self, drawn: list[tuple[str, Any]], order: str, name: str | None, reference: str | None) -> Json:
        where = [{"participant": s} if s in REGISTERED else {"name": s, "endpoints": endpoints(s)} for s, _ in drawn]
        body: Json = {
            "branches": [branch | {"payload": payload} for branch, (_, payload) in zip(where, drawn, strict=True)]
        }
        optional = {"try_order": order, "name": name, "reference": reference}
        return body | {member: value for member, value in optional.items() if value is not None}

    def post(self, body: Json, key: str | None, prefer: str | None, *, rewritten: bool = False) -> httpx.Response:
        headers = {"Content-Type": "application/json"} | ({} if prefer is None else {"Prefer": prefer})
        if key is not None:
            escaped = key.replace("\\", "\\\\").replace('"', '\\"')
            headers["Idempotency-Key"] = f'"{escaped}"'
        content = json.dumps(body, sort_keys=rewritten, indent=2 if rewritten else None)
        return self.ask("POST", "/v1/transactions", content=content, headers=headers)

    @rule(
        drawn=branches,
        order=st.sampled_from(["parallel", "sequential"]),
        name=names,
        reference=references,
        key=keys,
        answer_at=st.sampled_from(["end", "decision", "record"]),
        waits=st.booleans(),
        overdue=st.booleans(),
    )
    def begin(
        self,
        drawn: list[tuple[str, Any]],
        order: str,
        name: str | None,
        reference: str | None,
        key: str | None,
        answer_at: str,
        *,
        waits: bool,
        overdue: bool,
    ) -> None:
        body = self.request(drawn, order, name, reference) | {"answer_at": answer_at}
        new = self.model.begun_by(body)
        new.settle(self.model.behaviours)
        overdue = overdue and new.decision == "undecided"  # or it would be a race
        if overdue:
            body["timeout_s"] = 0.05
            new.settle(self.model.behaviours, overdue=True)
        reached = {"end": new.finished, "decision": new.decision != "undecided", "record": True}[answer_at]
        prefer = "wait=20" if waits and reached else "respond-async" if answer_at == "record" else "wait=0"
        answer = self.post(body, key, prefer)
        if key in self.model.by_key:
            known = self.model.by_key[key]
            if known.request == body:
                assert (answer.json().get("transaction") or answer.json())["id"] == known.id
            else:
                assert self.problem(answer, "idempotency-key-conflict")["transaction_id"] == known.id
            return
        if unknown := self.model.unknown_participants(body):
            assert self.problem(answer, "unknown-participant")["participant"] in unknown
            return
        self.model.transactions.append(new)
        if key is not None:
            self.model.by_key[key] = new
        self.check_begun(new, answer, prefer, must_be_there=waits and reached)

    def check_begun(self, new: Transaction, answer: httpx.Response, prefer: str, *, must_be_there: bool) -> None:
        resource = answer.json().get("transaction") or answer.json()
        new.id = resource["id"]
        assert answer.headers["location"] == f"/v1/transactions/{new.id}"
        assert answer.headers["preference-applied"] == prefer
        answer_at = new.request["answer_at"]
        if must_be_there and answer_at != "record":
            assert resource["decision"] == new.decision
            statuses = {"cancel": {409}, "confirm": {201} if new.finished and answer_at == "end" else {201, 202}}
            assert answer.status_code in statuses[new.decision]
            assert answer.status_code != 409 or answer.json()["type"] == "/problems/transaction-cancelled"
        assert answer.status_code in (201, 202, 409)
        assert (answer.status_code == 201) == (resource["outcome"] == "confirmed")
        assert answer.status_code != 409 or resource["decision"] == "cancel"
        self.run(self.same(new))

    @precondition(lambda self: self.model.by_key)
    @rule(data=st.data(), change=st.sampled_from([{"name": "another"}, {"timeout_s": 599}, {"answer_at": "decision"}]))
    def begin_another_under_a_known_key(self, data: st.DataObject, change: Json) -> None:
        key = data.draw(st.sampled_from(sorted(self.model.by_key)))
        transaction = self.model.by_key[key]
        if transaction.request | change != transaction.request:
            answer = self.post(transaction.request | change, key, None)
            assert self.problem(answer, "idempotency-key-conflict")["transaction_id"] == transaction.id

    @precondition(lambda self: self.model.by_key)
    @rule(data=st.data(), rewritten=st.booleans())
    def begin_again(self, data: st.DataObject, *, rewritten: bool) -> None:
        key = data.draw(st.sampled_from(sorted(self.model.by_key)))
        transaction = self.model.by_key[key]
        answer = self.post(transaction.request, key, "respond-async", rewritten=rewritten)
        assert (answer.json().get("transaction") or answer.json())["id"] == transaction.id
        if transaction.decision == "cancel" and (transaction.finished or transaction.request["answer_at"] != "end"):
            self.problem(answer, "transaction-cancelled")
        elif transaction.decision == "cancel":
            assert answer.status_code in (202, 409)  # asked not to wait: the contract leaves open which
        elif transaction.outcome == "mixed":
            self.problem(answer, "transaction-mixed")
        else:
            assert answer.status_code == (201 if transaction.finished else 202)

    @rule(faulty=st.sampled_from(FAULTY), key=st.sampled_from([None, "k-1"]))
    def begin_in_vain(self, faulty: tuple[Json, str], key: str | None) -> None:
        body, slug = faulty
        if "p0" in json.dumps(body) and key in self.model.by_key:
            key = None
        answer = self.post(body, key, None)
        if key in self.model.by_key and slug != "invalid":
            slug = "idempotency-key-conflict"  # what has begun under this key is looked at first
        if key in self.model.by_key and answer.status_code == 409:
            slug = "idempotency-key-conflict"
        self.problem(answer, slug)

    # --- commands ------------------------------------------------------------------------------------------------

    @precondition(lambda self: self.model.transactions)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        transaction = data.draw(st.sampled_from(self.model.transactions))
        answer = self.ask("POST", f"/v1/transactions/{transaction.id}/cancel")
        if transaction.decision == "confirm":
            self.problem(answer, "already-decided")
            return
        assert (answer.status_code, answer.json()["decision"]) == (200, "cancel")
        if transaction.decision == "undecided":
            transaction.cancel("requested")
        self.come_to_rest(transaction)

    @precondition(lambda self: self.model.transactions)
    @rule(data=st.data())
    def retry(self, data: st.DataObject) -> None:
        transaction = data.draw(st.sampled_from(self.model.transactions))
        answer = self.ask("POST", f"/v1/admin/transactions/{transaction.id}/retry")
        if transaction.finished:
            self.problem(answer, "already-finished")
        else:
            assert answer.status_code == 202
        self.come_to_rest(transaction)

    @precondition(lambda self: self.model.transactions)
    @rule(data=st.data(), settled=st.sampled_from(["confirmed", "cancelled"]), reason=st.sampled_from(["seen", ""]))
    def resolve(self, data: st.DataObject, settled: str, reason: str) -> None:
        transaction = data.draw(st.sampled_from(self.model.unfinished or self.model.transactions))
        name = data.draw(st.sampled_from([*(branch.name for branch in transaction.branches), "nobody", "%ff"]))
        path = f"/v1/admin/transactions/{transaction.id}/branches/{name}/resolve"
        answer = self.ask("POST", path, json={"as": settled, "reason": reason})
        branch = transaction.branch(name)
        if not reason:
            self.problem(answer, "invalid")
        elif branch is None:
            self.problem(answer, "unknown-branch")
        elif branch.phase in FINAL:
            self.problem(answer, "branch-finished")
        elif transaction.decision == "undecided":
            self.problem(answer, "not-decided")
        else:
            assert answer.status_code == 200
            transaction.resolve(branch, settled)
            resolution = next(b["resolution"] for b in answer.json()["branches"] if b["name"] == name)
            assert (resolution["as"], resolution["reason"]) == (settled, reason)
            assert resolution["by"]
        self.come_to_rest(transaction)

    @rule(
        id_=st.sampled_from([NOBODY, "x", "%00", NOBODY + "0"]),
        call=st.sampled_from(
            [("GET", ""), ("GET", "/calls"), ("GET", "/decision"), ("POST", "/cancel"), ("POST", "/retry")]
        ),
    )
    def ask_about_nothing(self, id_: str, call: tuple[str, str]) -> None:
        method, what = call
        prefix = "/v1/admin" if what == "/retry" else "/v1"
        self.problem(self.ask(method, f"{prefix}/transactions/{id_}{what}"), "unknown-transaction")

    # --- what is told --------------------------------------------------------------------------------------------

    @precondition(lambda self: self.model.transactions)
    @rule(data=st.data(), limit=st.integers(1, 3))
    def look(self, data: st.DataObject, limit: int) -> None:
        transaction = data.draw(st.sampled_from(self.model.transactions))
        path = f"/v1/transactions/{transaction.id}"
        own = [branch.name for branch in transaction.branches]
        branch = data.draw(st.sampled_from([None, *own, "nobody", "\0", ""]))
        decided = self.ask("GET", f"{path}/decision", params={} if branch is None else {"branch": branch}).json()
        is_stranger = transaction.decision == "confirm" and branch not in (None, *own)
        assert decided["decision"] == ("cancel" if is_stranger else transaction.decision)
        assert decided["finished"] == transaction.finished
        assert (
            1 <= decided["recheck_in_s"] <= 60 if transaction.decision == "undecided" else decided["recheck_in_s"] == 0
        )
        if not transaction.finished:
            return
        answer = self.ask("GET", path)
        assert self.ask("GET", path, headers={"If-None-Match": answer.headers["etag"]}).status_code == 304
        calls = [call for page in self.pages(f"{path}/calls", {"limit": str(limit)}) for call in page["items"]]
        made = [(call["branch"], call["operation"], call["attempt"]) for call in calls]
        assert len(made) == len(set(made))
        for branch in answer.json()["branches"]:
            for operation, attempts in branch["attempts"].items():
                found = sorted(attempt for name, what, attempt in made if (name, what) == (branch["name"], operation))
                assert found[:attempts] == list(range(1, attempts + 1)) or branch["phase"] == "resolved"

    def pages(self, path: str, query: Json) -> Iterator[Json]:
        cursor: Json = {}
        for _ in range(1000):
            page = self.ask("GET", path, params=query | cursor).json()
            assert len(page["items"]) <= int(query["limit"])
            yield page
            if page["next_cursor"] is None:
                return
            cursor = {"cursor": page["next_cursor"]}
        raise AssertionError("pages without end")

    @rule(
        filters=st.fixed_dictionaries(
            {"limit": st.sampled_from(["1", "2", "500"])},
            optional={
                "phase": st.sampled_from(["trying", "confirming", "cancelling", "confirmed", "cancelled"]),
                "name": st.sampled_from(["order", "Order", "größe 7", "none"]),
                "reference": st.sampled_from(["r-1", "r-2"]),
                "participant": st.sampled_from(REGISTERED),
                "hung": st.sampled_from(["true", "false"]),
            },
        )
    )
    def list_newest(self, filters: Json) -> None:
        items = [item for page in self.pages("/v1/transactions", filters) for item in page["items"]]
        wanted = self.model.matching({name: value for name, value in filters.items() if name != "limit"})
        ids = [item["id"] for item in items]
        assert ids == sorted((each.id for each in wanted), reverse=True)
        assert [item["created_at"] for item in items] == sorted((item["created_at"] for item in items), reverse=True)

    @rule(
        filters=st.fixed_dictionaries(
            {"limit": st.sampled_from(["1", "500"])},
            optional={"name": st.sampled_from(["order", "Order"]), "participant": st.sampled_from(REGISTERED)},
        )
    )
    def list_hung(self, filters: Json) -> None:
        pages = list(self.pages("/v1/admin/hung", filters))
        items = [item for page in pages for item in page["items"]]
        wanted = self.model.hanging(filters)
        assert sorted(item["id"] for item in items) == sorted(each.id for each in wanted)
        assert [item["hung_since"] for item in items] == sorted(item["hung_since"] for item in items)
        counted = sum(total["count"] for total in pages[0]["totals"])
        only = filters.get("participant")
        hang = [b for each in wanted for b in each.branches if b.hung_reasons and only in (None, b.participant)]
        assert counted == len(hang)

    @rule(
        path=st.sampled_from(["/v1/transactions", "/v1/admin/hung"]),
        query=st.sampled_from(
            [{"cursor": "x"}, {"cursor": ""}, {"limit": "0"}, {"limit": "501"}, {"phse": "trying"}, {"cursor": "WzFd"}]
        ),
    )
    def list_in_vain(self, path: str, query: Json) -> None:
        self.problem(self.ask("GET", path, params=query), "invalid")

    @invariant()
    def the_registry_is_as_it_was_told(self) -> None:
        if self.service.participants.received or self.model.registry:
            items = self.ask("GET", "/v1/participants").json()["items"]
            assert items == [self.model.registry[name] for name in sorted(self.model.registry)]


@pytest.fixture(scope="module", autouse=True)
def _template(tmp_path_factory: pytest.TempPathFactory) -> None:
    """A migrated database, to be copied for each example."""
    RestMachine.template = tmp_path_factory.mktemp("rest") / "template.db"

    async def make() -> None:
        async with running(f"sqlite:///{RestMachine.template}"):
            pass

    asyncio.run(make())


TestRest = RestMachine.TestCase
TestRest.settings = settings(
    max_examples=16 * TIMES,
    stateful_step_count=25,
    phases=[Phase.generate],  # shrinking plays the failing run hundreds of times, in real time
    suppress_health_check=list(HealthCheck),
    deadline=None,
)
