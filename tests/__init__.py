"""The tests of Holdfast, one folder a subject; what several folders need is in `tests.harness`. See README.md."""
