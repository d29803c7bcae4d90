"""Runs migrations on the connection that app/storage/migrations.py hands over; no URL is read here.

Each commits by itself, unless the connection is in a database transaction already.
"""

from alembic import context

from app.storage.tables import metadata

connection = context.config.attributes["connection"]
context.configure(
    connection=connection,
    target_metadata=metadata,
    render_as_batch=True,
    compare_type=True,
    transaction_per_migration=True,
)
with context.begin_transaction():
    context.run_migrations()
