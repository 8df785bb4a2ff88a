"""Who leads, and what the leader shows to the other servers."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    """Create both tables with their only row."""
    leaders = op.create_table(
        "leaders",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("epoch", sa.BigInteger, nullable=False),
        sa.Column("holder", sa.String(128), nullable=False),
        sa.Column("beats", sa.BigInteger, nullable=False),
        sa.Column("since", sa.Float),
        sa.Column("renewed_at", sa.Float),
    )
    boards = op.create_table(
        "boards",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("version", sa.BigInteger, nullable=False),
        sa.Column("document", sa.JSON, nullable=False),
    )
    op.bulk_insert(leaders, [{"id": 1, "epoch": 0, "holder": "", "beats": 0}])
    op.bulk_insert(boards, [{"id": 1, "version": 0, "document": {}}])
