"""The version of Holdfast, stated once: packaging, the coordinator's API and `--version` read it here."""

__version__ = "0.1.0"
