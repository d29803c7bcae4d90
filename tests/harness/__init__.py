"""What tests of several folders stand on; test folders import from here, and never from each other.

repository.py           what git knows about the repository
databases.py            which databases a test runs on
database_server.py      what postgres.py, mariadb.py and galera.py have in common: real servers, and server_process.py
                        each of their processes
coordinator_process.py  the coordinator as users run it, in a process of its own
coordinator_app.py      the coordinator's ASGI application in this process, with scripted participants
replica.py              a coordinator without API and sockets, on virtual time, which can die and freeze
network.py              its participants: scripted, and written down what they were asked
virtual_time.py         the event loop whose clock jumps
participant_app.py      a small service with the SDK, on every kind of database
asgi.py                 requests in bytes, straight to an application
fault_server.py         an HTTP server that misbehaves on request
budget.py               how many examples are drawn
transactions.py         transactions to store: plain ones, and any that could be
ledger.py               accounts and effects of a participant, for chaos and simulation
notes.py, evidence.py   what clients were told and what was done, as plain data
checker.py              evidence in, violations out
"""
