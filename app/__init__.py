"""The coordinator service; never shipped to users of the SDK."""
