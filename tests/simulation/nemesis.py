"""What happens to processes, links and clocks while faults are on."""

import uuid
from contextlib import suppress
from typing import Any, Final

import httpx

from holdfast.json_text import text_of
from holdfast.wire import Message, Operation
from tests.simulation.databases import ACCOUNTS
from tests.simulation.faults import Fault
from tests.simulation.replica import COORDINATOR_ID
from tests.simulation.scheduler import FROZEN_S, Process, pass_time

DOWN_S: Final = (0.05, 2.0)
JUMP_S: Final = (-5.0, 5.0)
STEPS_S: Final = (1.0, 300.0, 70 * 86_400.0)
"""How far the clocks of replicas' machines are off, or set, at the most."""
SEVERED_S: Final = (0.05, 0.6)


class Nemesis:
    """Draws when and to whom; each kind of fault that is active has a task."""

    def __init__(self, world: Any) -> None:
        self._world = world
        self._draw = world.draw
        acts = {
            Fault.REPLICA_CRASH: self._crash_replica,
            Fault.REPLICA_FREEZE: self._freeze_replica,
            Fault.REPLICA_STOP: self._stop_replica,
            Fault.REPLICA_PAUSE: self._pause_replica,
            Fault.REPLICA_STEP: self._set_a_clock,
            Fault.PARTICIPANT_CRASH: self._crash_participant,
            Fault.PARTICIPANT_FREEZE: self._freeze_participant,
            Fault.PARTICIPANT_JUMP: self._jump,
            Fault.SEVERED: self._sever,
            Fault.OPERATOR_RETRIES: self._retry,
            Fault.STRANGER: self._send_a_strangers_try,
            Fault.STRAY_BRANCH: self._send_a_stray_branch,
        }
        for fault, act in acts.items():
            if fault in world.plan.rates:
                world.loop.world.spawn(self._again_and_again(fault, act))
        world.loop.world.spawn(self._raise_the_dead())

    def heal(self) -> None:
        """Everything runs again, and everybody reaches everybody."""
        self._world.network.severed.clear()
        for each in (*self._world.replicas, *self._world.participants):
            each.life.thaw()
        self._world.healed_at = self._world.loop.now

    async def _again_and_again(self, fault: Fault, act: Any) -> None:
        while True:
            rate = self._world.plan.per_second(fault)
            if rate == 0:
                return
            await pass_time(self._draw.expovariate(rate))
            if self._world.plan.on and act():
                self._world.plan.count(fault)

    async def _raise_the_dead(self) -> None:
        """A supervisor: whoever is dead is started again after a while."""
        world = self._world
        everybody = [*world.replicas, *world.participants]
        while True:
            await pass_time(self._draw.uniform(*DOWN_S) / 4)
            for each in everybody:
                if each.name in world.absent:
                    continue
                if each.life.dead and (not world.plan.on or self._draw.random() < 0.5):
                    each.boot()

    def _crash_replica(self) -> bool:
        return self._crash(self._draw.choice(self._world.replicas))

    def _crash_participant(self) -> bool:
        return self._crash(self._draw.choice(self._world.participants))

    def _crash(self, who: Any) -> bool:
        if who.life.dead:
            return False
        who.life.kill()
        return True

    def _freeze_replica(self) -> bool:
        return self._freeze(self._draw.choice(self._world.replicas).life)

    def _freeze_participant(self) -> bool:
        return self._freeze(self._draw.choice(self._world.participants).life)

    def _pause_replica(self) -> bool:
        return self._freeze(self._draw.choice(self._world.replicas).life, with_its_clocks=True)

    def _freeze(self, life: Process, *, with_its_clocks: bool = False) -> bool:
        if not life.is_up:
            return False
        life.freeze_for(self._draw.uniform(*FROZEN_S), with_its_clocks=with_its_clocks)
        return True

    def _set_a_clock(self) -> bool:
        """Somebody, or NTP, sets the clock of a replica's machine."""
        replica = self._draw.choice(self._world.replicas)
        seconds = self._draw.choice(STEPS_S) * self._draw.uniform(-1.0, 1.0)
        self._world.tell("clock is set", replica.name, "", f"by {seconds:.1f} s")
        replica.offset_s += seconds
        replica.life.clock_offset_s += seconds
        return True

    def _stop_replica(self) -> bool:
        replica = self._draw.choice(self._world.replicas)
        if not replica.life.is_up or not replica.is_ready:
            return False
        replica.is_ready = False
        self._world.tell("stops", replica.life.name, "", "")
        self._world.loop.world.spawn(replica.stop())
        return True

    def _jump(self) -> bool:
        participant = self._draw.choice(self._world.participants)
        seconds = self._draw.uniform(*JUMP_S)
        self._world.tell("clock jumps", participant.name, "", f"{seconds:.1f} s")
        participant.offset_s += seconds
        participant.life.clock_offset_s += seconds
        return True

    def _sever(self) -> bool:
        """Stop links one by one, then restore them in another order."""
        if self._world.network.severed:
            return False
        self._world.loop.world.spawn(self._sever_and_restore())
        return True

    async def _sever_and_restore(self) -> None:
        world, draw = self._world, self._draw
        names = [each.name for each in world.replicas], [each.name for each in world.participants]
        links = [(a, b) for a in names[0] for b in names[1]] + [(b, a) for a in names[0] for b in names[1]]
        chosen = draw.sample(links, draw.randint(1, len(links)))
        for link in chosen:
            if world.plan.on:
                world.tell("link stops", *link, "")
                world.network.severed.add(link)
                await pass_time(draw.uniform(*SEVERED_S) / len(chosen))
        await pass_time(draw.uniform(*SEVERED_S))
        draw.shuffle(chosen)
        for link in chosen:
            world.tell("link works", *link, "")
            world.network.severed.discard(link)
            await pass_time(draw.uniform(*SEVERED_S) / len(chosen))

    def _retry(self) -> bool:
        if not self._world.clients.known:
            return False
        transaction_id = self._draw.choice(self._world.clients.known)
        request = ("retry", transaction_id)
        replicas = [replica.name for replica in self._world.replicas]
        for replica in replicas if self._draw.random() < 0.5 else [self._draw.choice(replicas)]:
            self._world.clients_process.spawn(self._ask(replica, request))
        return True

    async def _ask(self, replica: str, request: tuple[str, str]) -> None:
        label = f"retry {self._world.short(request[1])}"
        with suppress(httpx.HTTPError):
            await self._world.network.exchange("operator", replica, request, request, label)

    def _send_a_strangers_try(self) -> bool:
        """A hold that no coordinator knows of: the participant asks about it, hears unknown, and gives it back."""
        self._send_a_try(str(uuid.UUID(int=self._draw.getrandbits(128))), "stray")
        return True

    def _send_a_stray_branch(self) -> bool:
        """A hold of a branch that its transaction doesn't have: given back, whatever is decided for the others."""
        if not self._world.clients.known:
            return False
        self._send_a_try(self._draw.choice(self._world.clients.known), f"stray-{self._draw.getrandbits(32)}")
        return True

    def _send_a_try(self, transaction_id: str, branch: str) -> None:
        world, draw = self._world, self._draw
        participant = draw.choice(world.participants)
        world.strangers.add((transaction_id, branch))
        payload = {"kind": draw.choice(["debit", "credit"]), "account": draw.randrange(ACCOUNTS), "amount": 3}
        message = Message(
            transaction_id=transaction_id,
            branch=branch,
            operation=Operation.TRY,
            attempt=1,
            payload=text_of(payload),
            hold_ttl_s=draw.uniform(0.1, 2.0),
            coordinator_id=draw.choice([None, COORDINATOR_ID]),
        )
        headers = [(name.lower().encode(), value.encode()) for name, value in message.headers().items()]
        request = ("/try", headers, message.body())
        world.loop.world.spawn(self._forget(participant.name, request, transaction_id))

    async def _forget(self, participant: str, request: Any, transaction_id: str) -> None:
        with suppress(httpx.HTTPError):
            label = f"try {self._world.short(transaction_id)} of a stranger"
            await self._world.network.exchange("stranger", participant, request, transaction_id, label)
