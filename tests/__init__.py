"""The tests of Holdfast, one folder a subject; what several of them need is in `tests.support`."""
