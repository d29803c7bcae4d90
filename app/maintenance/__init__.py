"""Background work on finished transactions. Nothing in progress depends on it."""
