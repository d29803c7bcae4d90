"""What the log says of a transaction: that it hangs and no longer does, who settled it, and whose it is now."""

import logging
import re
from dataclasses import replace

import pytest
from sqlalchemy import Engine

from app.protocol.kinds import OPERATIONS
from app.protocol.messages import BranchResolved, RetryRequested
from app.protocol.values import Settled
from holdfast.wire import Kind, Operation
from tests.harness.network import SILENT, Network, Reply
from tests.harness.replica import Replica, begin_of
from tests.harness.virtual_time import in_virtual_time, now, pass_time, until

TRY, CONFIRM = Operation.TRY, Operation.CONFIRM
REFUSES, ANSWERS = Reply(status=409), Reply()
BY = "ops at 10.0.0.7"


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO, logger="app")
    return caplog


def lines(said: pytest.LogCaptureFixture, id_: str) -> list[str]:
    """What was said of a transaction, without its id; what the record says too is in tests/api/test_audit.py."""
    own = [f"{each.levelname} {each.getMessage()}" for each in said.records if id_ in each.getMessage()]
    own = [line for line in own if "event=audited" not in line]
    return [re.sub(rf" transaction_id={id_}", "", line) for line in own]


@in_virtual_time
async def test_each_branch_that_hangs_is_a_line_and_so_is_its_end(
    database_url: str, engine: Engine, said: pytest.LogCaptureFixture
) -> None:
    network = Network(engine, now, {("car", CONFIRM): [REFUSES, ANSWERS], ("hotel", CONFIRM): [REFUSES]})
    async with Replica(database_url, network) as replica:
        begun = await replica.coordinator.begin(begin_of())
        await replica.coordinator.wait(begun.id, lambda t: t.hung_since is not None, 5.0)
        await until(lambda: len(lines(said, begun.id)) == 2)
        assert sorted(lines(said, begun.id)) == [
            "WARNING event=hung branch=car participant=car reason=confirm_refused",
            "WARNING event=hung branch=hotel participant=hotel reason=confirm_refused",
        ]
        said.clear()
        await replica.command(begun.id, RetryRequested(by=BY))
        await until(lambda: any("no_longer" in line for line in lines(said, begun.id)))
        assert lines(said, begun.id) == [
            f"INFO event=retried by='{BY}'",
            "INFO event=no_longer_hung branch=car participant=car reason=confirm_refused",
        ]
        said.clear()
        settled = BranchResolved(branch="hotel", settled=Settled.CANCELLED, by=BY, reason="it isn't\u2028there")
        await replica.command(begun.id, settled)
        assert lines(said, begun.id) == [
            "WARNING event=resolved branch=hotel participant=hotel settled=cancelled "
            f"by='{BY}' reason=\"it isn't\\u2028there\"",
            "INFO event=no_longer_hung branch=hotel participant=hotel reason=confirm_refused",
            "WARNING event=mixed decision=confirm",
        ]


@in_virtual_time
async def test_inline_endpoints_are_called_by_their_host(
    database_url: str, engine: Engine, said: pytest.LogCaptureFixture
) -> None:
    network = Network(engine, now, {("car", CONFIRM): [REFUSES]})
    begin = begin_of("car")
    endpoints = {operation: f"http://cars.test:8080/{operation}" for operation in OPERATIONS[Kind.TCC]}
    inline = tuple(replace(branch, participant=None, endpoints=endpoints) for branch in begin.branches)
    async with Replica(database_url, network) as replica:
        begun = await replica.coordinator.begin(replace(begin, branches=inline))
        await replica.coordinator.wait(begun.id, lambda t: t.hung_since is not None, 5.0)
    assert lines(said, begun.id)[0].endswith("branch=car participant=cars.test:8080 reason=confirm_refused")


@in_virtual_time
async def test_what_runs_well_or_only_waits_is_no_line(
    database_url: str, engine: Engine, said: pytest.LogCaptureFixture
) -> None:
    """Nor is it a takeover when recovery takes up what had come to rest."""
    network = Network(engine, now, {("car", TRY): [Reply(status=503, headers={"Retry-After": "5"}), ANSWERS]})
    async with Replica(database_url, network) as replica:
        begun = await replica.coordinator.begin(begin_of())
        await until(lambda: len(replica.runs) == 0)
        assert (await replica.end_of(begun.id)).outcome == "confirmed"
        assert replica.metrics.claimed._value.get() == 0
    assert lines(said, begun.id) == []


@in_virtual_time
async def test_whoever_takes_over_from_a_dead_process_says_so_once(
    database_url: str, engine: Engine, said: pytest.LogCaptureFixture
) -> None:
    network = Network(engine, now, {("car", TRY): [SILENT, ANSWERS]})
    async with Replica(database_url, network) as dies, Replica(database_url, network, recovers=False) as rests:
        begun = await dies.coordinator.begin(begin_of())
        confirmed = await rests.coordinator.begin(begin_of("hotel"))
        await rests.end_of(confirmed.id)
        dies.gate.kill()
    async with Replica(database_url, network) as recovers:
        await pass_time(2.0)
        await recovers.end_of(begun.id)
        assert recovers.metrics.claimed._value.get() == 1
    assert lines(said, begun.id) == ["INFO event=recovered"]
    assert lines(said, confirmed.id) == []


@in_virtual_time
async def test_whoever_was_overtaken_says_so(database_url: str, engine: Engine, said: pytest.LogCaptureFixture) -> None:
    network = Network(engine, now, {("car", TRY): [SILENT, ANSWERS]})
    async with Replica(database_url, network, recovers=False) as one, Replica(database_url, network) as two:
        begun = await one.coordinator.begin(begin_of())
        await until(lambda: len(network.asked) == 3)
        one.gate.freeze()
        await until(lambda: two.metrics.claimed._value.get() == 1)
        one.gate.thaw()
        await two.end_of(begun.id)
        await until(lambda: len(one.runs) == 0)
    assert lines(said, begun.id) == ["INFO event=recovered", "INFO event=taken_over"]
