"""Gangs, preemption, dependencies and policies."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}

_jobs = sa.table(
    "jobs",
    sa.column("id", sa.String),
    sa.column("spec", sa.JSON),
    sa.column("time_limit_s", sa.Float),
    *(sa.column(name, sa.Integer) for name in ("workers", "max_workers", "cpus", "gpus")),
)


def upgrade() -> None:
    """Add the columns and tables; `cpus` and `gpus` become those of one worker."""
    with op.batch_alter_table("jobs") as table:
        for name, default in (("workers", "1"), ("max_workers", "1"), ("overtaken", "0")):
            table.add_column(sa.Column(name, sa.Integer, nullable=False, server_default=default))
        table.add_column(sa.Column("stop_for", sa.String(16)))
        table.add_column(sa.Column("time_limit_s", sa.Float))
    with op.batch_alter_table("attempts") as table:
        table.add_column(sa.Column("workers", sa.Integer, nullable=False, server_default="1"))
        table.add_column(sa.Column("stop_asked_at", sa.Float))
    op.create_index("attempts_finished", "attempts", ["finished_at"])
    op.create_table(
        "dependencies",
        sa.Column("job_id", sa.String(32), sa.ForeignKey("jobs.id"), primary_key=True),
        sa.Column("parent_id", sa.String(32), sa.ForeignKey("jobs.id"), primary_key=True),
        sa.Column("condition", sa.String(16), nullable=False),
        sa.Column("is_met", sa.Boolean, nullable=False),
    )
    op.create_index("dependencies_open", "dependencies", ["is_met"])
    op.create_table(
        "policies",
        sa.Column("scope", sa.String(16), primary_key=True),
        sa.Column("name", sa.String(64), primary_key=True),
        sa.Column("rules", sa.JSON, nullable=False),
    )
    _fill_in(op.get_bind())


def _fill_in(connection: sa.Connection) -> None:
    """What the specs of earlier jobs say."""
    for job in connection.execute(sa.select(_jobs)).all():
        if limit := job.spec["queue"]["time_limit"]:
            seconds = int(limit[:-1]) * _SECONDS[limit[-1]]
            connection.execute(sa.update(_jobs).where(_jobs.c.id == job.id).values(time_limit_s=seconds))
        resources = job.spec.get("resources")
        if resources:
            workers = int(resources["workers"])
            values = {"cpus": int(resources["cpus_per_worker"]), "gpus": int(resources["gpus_per_worker"])}
            changed = sa.update(_jobs).where(_jobs.c.id == job.id)
            connection.execute(changed.values(workers=workers, max_workers=workers, **values))
            connection.execute(
                sa.text("UPDATE attempts SET workers = :workers WHERE job_id = :id"), {"workers": workers, "id": job.id}
            )
