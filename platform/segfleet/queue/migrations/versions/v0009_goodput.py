"""Where the time of attempts went: what their processes told, and each job's split."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"

_PARTS = (
    "step",
    "validation",
    "work",
    "data",
    "checkpoint",
    "mlflow",
    "load",
    "other",
    "redone",
    "detection",
    "restart",
    "waiting",
    "paused",
    "stopped",
)


def upgrade() -> None:
    """Add the column and the table; of earlier attempts nothing is known."""
    op.add_column("attempts", sa.Column("lives", sa.JSON))
    op.create_table(
        "goodput",
        sa.Column("job_id", sa.String(32), sa.ForeignKey("jobs.id"), primary_key=True),
        *(sa.Column(part, sa.Float, nullable=False) for part in _PARTS),
    )
