"""Five stories with real processes, from which to understand TCC: `python -m examples.demo`, or `make demo`."""
