"""Calls to participants: where they are, what may be called, one call, and its connection."""
