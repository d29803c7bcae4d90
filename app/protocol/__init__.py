"""The state machine: pure data in, pure data out. No I/O, no clock, no random source, no framework."""
