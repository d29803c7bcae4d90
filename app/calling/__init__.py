"""Calls to participants: the registry, the allow-list, one call, and its connection."""
