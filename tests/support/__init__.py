"""What tests stand on: a real PostgreSQL server, and a server that breaks HTTP in every way that matters."""
