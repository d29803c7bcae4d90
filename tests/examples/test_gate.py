"""The gate lets pass, holds back, and cuts off; to both sides it looks like a network."""

import asyncio
from collections.abc import AsyncIterator

import httpx
import pytest

from examples.demo.gate import Gate
from tests.harness.fault_server import FaultServer, Reply


@pytest.fixture
async def participant() -> AsyncIterator[FaultServer]:
    async with FaultServer() as server:
        server.script("/tcc/try", [Reply(200, {"hold": 1})])
        yield server


@pytest.fixture
async def gate(participant: FaultServer) -> AsyncIterator[Gate]:
    gate = Gate(int(participant.url().rpartition(":")[2].strip("/")))
    await gate.start()
    yield gate
    await gate.stop()


@pytest.fixture
async def client() -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient() as client:
        yield client


async def test_what_passes_is_unchanged_and_remembered(
    gate: Gate, participant: FaultServer, client: httpx.AsyncClient
) -> None:
    answer = await client.post(f"{gate.url}/tcc/try", json={"payload": 7})
    assert (answer.status_code, answer.json()) == (200, {"hold": 1})
    assert b'"payload":7' in participant.requests[0].body.replace(b" ", b"")
    assert [(each.path, each.status, each.body) for each in gate.exchanges] == [("/tcc/try", 200, {"hold": 1})]


async def test_a_request_that_is_held_back_comes_later_or_never(
    gate: Gate, participant: FaultServer, client: httpx.AsyncClient
) -> None:
    barrier = gate.hold_requests("try")
    calling = asyncio.create_task(client.post(f"{gate.url}/tcc/try"))
    await barrier.reached.wait()
    assert participant.requests == []
    barrier.let_pass()
    assert (await calling).status_code == 200
    gate.forget()
    barrier = gate.hold_requests("try")
    calling = asyncio.create_task(client.post(f"{gate.url}/tcc/try"))
    await barrier.reached.wait()
    barrier.cut()
    with pytest.raises(httpx.HTTPError):
        await calling
    assert len(participant.requests) == 1


async def test_an_answer_that_is_held_back_has_had_its_effect(
    gate: Gate, participant: FaultServer, client: httpx.AsyncClient
) -> None:
    barrier = gate.hold_answers("try")
    calling = asyncio.create_task(client.post(f"{gate.url}/tcc/try"))
    await barrier.reached.wait()
    assert len(participant.requests) == 1
    assert not calling.done()
    barrier.cut()
    with pytest.raises(httpx.HTTPError):
        await calling


async def test_a_closed_gate_lets_nothing_through(
    gate: Gate, participant: FaultServer, client: httpx.AsyncClient
) -> None:
    gate.closed = True
    with pytest.raises(httpx.HTTPError):
        await client.post(f"{gate.url}/tcc/try")
    assert participant.requests == []
    assert [each.status for each in gate.exchanges] == [None]


async def test_nobody_behind_the_gate_is_no_answer(client: httpx.AsyncClient) -> None:
    async with FaultServer() as server:
        gate = Gate(int(server.refused_url().rpartition(":")[2].strip("/")))
        await gate.start()
        with pytest.raises(httpx.HTTPError):
            await client.get(f"{gate.url}/v1/transactions/1/decision")
        await gate.stop()
