"""Which group of workers speaks for an attempt, and machines that are about to go."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"


def upgrade() -> None:
    """Add the column and the table; groups of earlier attempts have no number, and none is asked for."""
    op.add_column("attempts", sa.Column("groups", sa.JSON, quote=True))
    op.create_table(
        "leaving",
        sa.Column("node", sa.String(64), primary_key=True),
        sa.Column("address", sa.String(64), nullable=False),
        sa.Column("leaves_at", sa.Float),
        sa.Column("told_at", sa.Float, nullable=False),
    )
