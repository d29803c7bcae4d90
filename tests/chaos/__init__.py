"""Chaos: real replicas, participants and PostgreSQL under load, killed and frozen at random, and then checked.

`make chaos MINUTES=2 REPLICAS=3 SEED=7`. Who does what:

    __main__.py     the run: start, load and nemesis, quiescence, evidence, checker, report
    world.py        the processes and their settings
    participant.py  one participant process: the SDK, a ledger, faults on request
    ledger.py       its accounts and its effects, in one database with the fence
    witness.py      its request log and its faults, outside the fence
    load.py         the clients, in a process of their own
    notes.py        what clients and participants were told
    nemesis.py      what is done to whom and when (a plan, from the seed), and doing it
    evidence.py     reads logs, ledgers and REST into plain data; never the coordinator's tables
    checker.py      plain data in, violations out
    report.py       figures and timelines for people
"""
