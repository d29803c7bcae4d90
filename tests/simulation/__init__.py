"""Deterministic simulation: real replicas and participants in one process, on virtual time, from one seed.

`make sim SEED=7` runs one seed, `make sim SEEDS=2000` that many. What is real: the coordinator's loop, recovery,
registry, caller, the store's SQL, the journal's batches, the API's functions for clients and participants in doubt, the
SDK's routes, fence, execution and reaper. What is simulated: the event loop, clocks, threads, sockets, disks.

    scheduler.py      the event loop: virtual time, processes that die and freeze, one source of all choices
    faults.py         which faults there are, how often each is in this seed, and what was counted
    databases.py      SQLite in memory, one for the coordinator and one for each participant
    direct_sqlite.py  SQLAlchemy's statements without its connections, which cost more than SQLite does
    journal.py        the journal, run by the scheduler instead of by threads
    network.py        messages between processes, and what becomes of them
    restarting.py     one process after the other: what replicas and participants have in common
    replica.py        one replica of the coordinator, and its restarts
    participant.py    one participant: the SDK with a ledger, and its restarts
    clients.py        who begins transactions, asks, cancels, repeats
    nemesis.py        what happens to processes, links and clocks while faults are on
    world.py          one seed from beginning to end: safety, then liveness
    oracle.py         what is checked, at each call and at the end, by the rules of tests/harness/checker.py
    ablations.py      safeguards that can be taken out, to see that the simulation notices
    shrink.py         a failing seed made smaller
    seeds.py          many seeds, on all cores
    __main__.py       the command, and its report
"""
