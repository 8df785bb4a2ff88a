"""Elastic jobs' numbers of workers, start deadlines, and lanes of jobs that run one at a time."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    """Add the columns; no job has had any of it so far."""
    op.add_column("jobs", sa.Column("sizes", sa.JSON))
    op.add_column("jobs", sa.Column("start_by", sa.Float))
    op.add_column("jobs", sa.Column("lane", sa.String(64)))
    op.create_index("jobs_start_by", "jobs", ["start_by"])
    op.create_index("jobs_lane", "jobs", ["lane"])
