"""The tables of the queue. Migrations bring a database to this shape; a test compares the two."""

from __future__ import annotations

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
)

from segfleet.queue.goodput import PARTS

metadata = MetaData()
# SQLite numbers rows by itself only for a column that is exactly INTEGER PRIMARY KEY.
_Serial = BigInteger().with_variant(Integer(), "sqlite")

jobs = Table(
    "jobs",
    metadata,
    Column("seq", _Serial, primary_key=True, autoincrement=True),
    Column("id", String(32), nullable=False, unique=True),
    Column("name", String(64), nullable=False),
    Column("kind", String(16), nullable=False),
    Column("owner", String(64), nullable=False),
    Column("project", String(64), nullable=False),
    Column("state", String(16), nullable=False),
    Column("reason", Text, nullable=False),
    Column("priority", Integer, nullable=False),
    Column("workers", Integer, nullable=False),
    Column("max_workers", Integer, nullable=False),
    Column("sizes", JSON(none_as_null=True)),
    Column("cpus", Integer, nullable=False),
    Column("gpus", Integer, nullable=False),
    Column("spec", JSON, nullable=False),
    Column("created_at", Float, nullable=False),
    Column("updated_at", Float, nullable=False),
    Column("started_at", Float),
    Column("finished_at", Float),
    Column("attempt", Integer, nullable=False),
    Column("fence", Integer, nullable=False),
    Column("budget_from", Integer, nullable=False),
    Column("cancel_requested", Boolean, nullable=False),
    Column("progress", JSON(none_as_null=True)),
    Column("checkpoint", JSON(none_as_null=True)),
    Column("result", JSON(none_as_null=True)),
    Column("error", JSON(none_as_null=True)),
    Column("not_before", Float),
    Column("time_limit_s", Float),
    Column("start_by", Float),
    Column("lane", String(64)),
    Column("overtaken", Integer, nullable=False),
    Column("stop_for", String(16)),
    Column("version", Integer, nullable=False),
    Index("jobs_line", "state", "priority", "seq"),
    Index("jobs_start_by", "start_by"),
    Index("jobs_lane", "lane"),
)

attempts = Table(
    "attempts",
    metadata,
    Column("id", String(40), primary_key=True),
    Column("job_id", String(32), ForeignKey("jobs.id"), nullable=False),
    Column("number", Integer, nullable=False),
    Column("fence", Integer, nullable=False),
    Column("state", String(16), nullable=False),
    Column("code_hash", String(64), nullable=False),
    Column("token_hash", String(64)),
    Column("instance_hash", String(64)),
    Column("ray_session", String(128)),
    Column("created_at", Float, nullable=False),
    Column("claimed_at", Float),
    Column("heartbeat_at", Float),
    Column("finished_at", Float),
    Column("beats", Integer, nullable=False),
    Column("used_s", Float, nullable=False),
    Column("workers", Integer, nullable=False),
    Column("stop_asked_at", Float),
    Column("failure", JSON(none_as_null=True)),
    Column("closed", Boolean, nullable=False),
    Column("lives", JSON(none_as_null=True)),
    Column("groups", JSON(none_as_null=True), quote=True),
    UniqueConstraint("job_id", "number", name="attempts_number"),
    UniqueConstraint("job_id", "fence", name="attempts_fence"),
    Index("attempts_open", "closed"),
    Index("attempts_finished", "finished_at"),
)

# Machines that are about to go, as jobs on them have told: the cluster's REST interface does not show it.
leaving = Table(
    "leaving",
    metadata,
    Column("node", String(64), primary_key=True),
    Column("address", String(64), nullable=False),
    Column("leaves_at", Float),
    Column("told_at", Float, nullable=False),
)

events = Table(
    "events",
    metadata,
    Column("seq", _Serial, primary_key=True, autoincrement=True),
    Column("job_id", String(32), ForeignKey("jobs.id"), nullable=False),
    Column("at", Float, nullable=False),
    Column("kind", String(32), nullable=False),
    Column("who", String(64), nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("source", String(16)),
    Column("target", String(16)),
    Column("detail", JSON, nullable=False),
    Index("events_of_job", "job_id", "seq"),
)

idempotency = Table(
    "idempotency",
    metadata,
    Column("owner", String(64), primary_key=True),
    Column("key", String(255), primary_key=True),
    Column("job_id", String(32), ForeignKey("jobs.id"), nullable=False),
    Column("spec_hash", String(64), nullable=False),
)

dependencies = Table(
    "dependencies",
    metadata,
    Column("job_id", String(32), ForeignKey("jobs.id"), primary_key=True),
    Column("parent_id", String(32), ForeignKey("jobs.id"), primary_key=True),
    Column("condition", String(16), nullable=False),
    Column("is_met", Boolean, nullable=False),
    Index("dependencies_open", "is_met"),
)

# Where the time of jobs went, as of the end of their latest attempt.
goodput = Table(
    "goodput",
    metadata,
    Column("job_id", String(32), ForeignKey("jobs.id"), primary_key=True),
    *(Column(part, Float, nullable=False) for part in PARTS),
)

# What became of each choice of a search; rows are written by the search's attempt alone.
trials = Table(
    "trials",
    metadata,
    Column("job_id", String(32), ForeignKey("jobs.id"), primary_key=True),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("kind", String(16), nullable=False),
    Column("params", JSON, nullable=False),
    Column("state", String(16), nullable=False),
    Column("why", Text, nullable=False),
    Column("step", Integer, nullable=False),
    Column("num_steps", Integer, nullable=False),
    Column("reports", JSON, nullable=False),
    Column("best_value", Float),
    Column("best_step", Integer),
    Column("parameters", BigInteger),
    Column("images_per_s", Float),
    Column("peak_memory_mib", Float),
    Column("worker_seconds", Float, nullable=False),
    Column("checkpoint", JSON(none_as_null=True)),
    Column("mlflow_run", String(64)),
    Column("attempt", Integer, nullable=False),
    Column("created_at", Float, nullable=False),
    Column("started_at", Float),
    Column("finished_at", Float),
    Column("updated_at", Float, nullable=False),
)

policies = Table(
    "policies",
    metadata,
    Column("scope", String(16), primary_key=True),
    Column("name", String(64), primary_key=True),
    Column("rules", JSON, nullable=False),
)

# One row: which of the servers on this database leads.
leaders = Table(
    "leaders",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("epoch", BigInteger, nullable=False),
    Column("holder", String(128), nullable=False),
    Column("beats", BigInteger, nullable=False),
    Column("since", Float),
    Column("renewed_at", Float),
)

# One row: the leader's board, for the others to show.
boards = Table(
    "boards",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("version", BigInteger, nullable=False),
    Column("document", JSON, nullable=False),
)

users = Table(
    "users",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("role", String(16), nullable=False),
    Column("created_at", Float, nullable=False),
)

members = Table(
    "members",
    metadata,
    Column("user_name", String(64), ForeignKey("users.name"), primary_key=True),
    Column("project", String(64), primary_key=True),
)

tokens = Table(
    "tokens",
    metadata,
    Column("id", String(16), primary_key=True),
    Column("user_name", String(64), ForeignKey("users.name"), nullable=False),
    Column("secret_hash", String(64), nullable=False),
    Column("created_at", Float, nullable=False),
    Column("expires_at", Float),
    Column("last_used_at", Float),
    Column("revoked_at", Float),
    Column("made_by", String(64), nullable=False),
)

# Of the web page: each is tied to the token that opened it, and knows both by their digests alone.
sessions = Table(
    "sessions",
    metadata,
    Column("id_hash", String(64), primary_key=True),
    Column("token_id", String(16), nullable=False),
    Column("secret_hash", String(64), nullable=False),
    Column("created_at", Float, nullable=False),
    Column("expires_at", Float, nullable=False),
    Index("sessions_expiry", "expires_at"),
)

# Only ever appended to: triggers refuse everything else.
audit = Table(
    "audit",
    metadata,
    Column("seq", _Serial, primary_key=True, autoincrement=True),
    Column("at", Float, nullable=False),
    Column("who", String(64), nullable=False),
    Column("token_id", String(16), nullable=False),
    Column("address", String(64), nullable=False),
    Column("action", String(128), nullable=False),
    Column("subject", String(256), nullable=False),
    Column("outcome", String(16), nullable=False),
)

webhooks = Table(
    "webhooks",
    metadata,
    Column("id", String(16), primary_key=True),
    Column("url", Text, nullable=False),
    Column("events", JSON, nullable=False),
    Column("project", String(64)),
    Column("owner", String(64), nullable=False),
    Column("created_at", Float, nullable=False),
)

# The outbox: a row is written with the change that it tells of, and marked once the webhook has taken it.
deliveries = Table(
    "deliveries",
    metadata,
    Column("seq", _Serial, primary_key=True, autoincrement=True),
    Column("id", String(32), nullable=False, unique=True),
    Column("webhook_id", String(16), ForeignKey("webhooks.id"), nullable=False),
    Column("event", String(32), nullable=False),
    Column("document", JSON, nullable=False),
    Column("state", String(16), nullable=False),
    Column("tries", Integer, nullable=False),
    Column("due_at", Float, nullable=False),
    Column("created_at", Float, nullable=False),
    Column("ended_at", Float),
    Column("answer", Text, nullable=False),
    Index("deliveries_line", "state", "webhook_id", "seq"),
)

# What a version must show to take over an alias.
gates = Table(
    "gates",
    metadata,
    Column("model", String(64), primary_key=True),
    Column("alias", String(64), primary_key=True),
    Column("rules", JSON, nullable=False),
    Column("set_by", String(64), nullable=False),
    Column("set_at", Float, nullable=False),
)

# `slot` names the alias while it is being moved: of two promotions only one can have it.
promotions = Table(
    "promotions",
    metadata,
    Column("seq", _Serial, primary_key=True, autoincrement=True),
    Column("id", String(32), nullable=False, unique=True),
    Column("model", String(64), nullable=False),
    Column("alias", String(64), nullable=False),
    Column("version", String(16), nullable=False),
    Column("holder", String(16)),
    Column("who", String(64), nullable=False),
    Column("project", String(64), nullable=False),
    Column("origin", String(64), unique=True),
    Column("state", String(16), nullable=False),
    Column("why", Text, nullable=False),
    Column("gate", JSON(none_as_null=True)),
    Column("evaluations", JSON, nullable=False),
    Column("figures", JSON, nullable=False),
    Column("slot", String(160), unique=True),
    Column("mover", String(32)),
    Column("created_at", Float, nullable=False),
    Column("updated_at", Float, nullable=False),
    Index("promotions_model", "model", "seq"),
    Index("promotions_state", "state"),
)
