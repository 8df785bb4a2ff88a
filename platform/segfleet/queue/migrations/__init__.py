"""Alembic migrations of the queue's database; shipped with the package and run when a store opens."""
