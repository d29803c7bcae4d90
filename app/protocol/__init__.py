"""The state machine: pure data in, pure data out. No I/O, no clock, no randomness, no framework."""
