"""Background work on what is finished. Nothing that is under way depends on it."""
