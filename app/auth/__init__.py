"""Who may do what: API keys, roles, and the record of who did it. Knows nothing of routes."""
