"""Keys, roles and the record, without routes."""
