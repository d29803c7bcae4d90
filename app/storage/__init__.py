"""The database: every table, every statement, and the two ways to run them. No transition of the protocol here."""
