"""Alembic's entry: runs on the connection that `segfleet.queue.database.migrate` hands over."""

from __future__ import annotations

from alembic import context

from segfleet.queue.tables import metadata

# Alembic believes that SQLite cannot roll back DDL; inside an explicit transaction it can.
context.configure(connection=context.config.attributes["connection"], target_metadata=metadata, transactional_ddl=True)
with context.begin_transaction():
    context.run_migrations()
