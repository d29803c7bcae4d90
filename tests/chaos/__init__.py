"""Chaos: real replicas, participants and PostgreSQL under load, killed and frozen at random, and then checked.

`make chaos MINUTES=2 REPLICAS=3 SEED=7`. Who does what:

    __main__.py     the run: start, load and nemesis, quiescence, evidence, checker, report
    system.py       the processes and their settings, and how they hang together
    processes.py    one program that is started again and again
    forkserver.py   forks them, so that a start doesn't take two seconds of a core
    proxy.py        the network between all of them, which can be cut, swallow, delay and reset
    disks.py        small disks that can be full
    participant.py  one participant process: the SDK, a ledger, faults on request
    call_log.py     its request log and its faults, outside the fence
    load.py         the clients, in a process of their own
    nemesis.py      what is done to whom and when (a plan, from the seed), and doing it
    gathering.py    reads logs, ledgers and REST into plain data; never the coordinator's tables
    report.py       figures and timelines for people

From tests/harness: ledger.py (a participant's accounts and effects), notes.py (what clients were told), evidence.py and
checker.py (the plain data, and its violations).
"""
