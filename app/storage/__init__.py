"""The database: every table, every statement, and the ways to run them. No transitions of the protocol here."""
