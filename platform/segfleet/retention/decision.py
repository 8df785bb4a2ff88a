"""What may go: a pure decision over what is there."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from pydantic import Field

from segfleet.spec.sections import Duration, Section, duration_s


class Kind(StrEnum):
    """What can go: a checkpoint's folder, an attempt's log, or an MLflow run with its files."""

    CHECKPOINT = "checkpoint"
    LOG = "log"
    RUN = "run"


class Rules(Section):
    """When what ended jobs have left may go; null: never."""

    checkpoints_after: Duration | None = Field(None, description="age since the job's end at which checkpoints go")
    logs_after: Duration | None = Field(None, description="age at which copies of logs go")
    runs_after: Duration | None = Field(None, description="age at which MLflow runs without a registered version go")
    keep_best: bool = Field(True, description="the best checkpoint of each job and trial stays")
    keep_latest: bool = Field(True, description="the latest checkpoint of each job and trial stays")
    retry_for: Duration = Field(
        "30d", description="after their end, failed and cancelled jobs keep what a retry would go on from"
    )


@dataclass(frozen=True, slots=True)
class Piece:
    """Something of a job that takes room.

    Attributes:
        kind: What it is.
        name: Path below the storage or the logs, or the run's id.
        bytes: Its size; 0 where nobody can tell.
        is_best: Whether it is the best checkpoint of its job or trial.
        is_latest: Whether the job or trial points to it.
        is_remnant: A write or a deletion that was cut off has left it.
    """

    kind: Kind
    name: str
    bytes: int
    is_best: bool = False
    is_latest: bool = False
    is_remnant: bool = False


@dataclass(frozen=True, slots=True)
class Leaving:
    """A job and what it has left.

    Attributes:
        job_id: The job.
        ended_at: Seconds since the epoch; None: it has not ended, or something of it may still run.
        can_retry: Whether it failed or was cancelled.
        needed_by: Who needs it: a job that follows it or names it; empty: nobody.
        versions: Registered versions that come from it.
        pieces: All that takes room.
    """

    job_id: str
    ended_at: float | None
    can_retry: bool
    needed_by: str
    versions: tuple[str, ...]
    pieces: tuple[Piece, ...]


def youngest_age_s(rules: Rules) -> float | None:
    """Age below which nothing goes, in seconds; None: nothing goes at all."""
    ages = [duration_s(age) for age in (rules.checkpoints_after, rules.logs_after, rules.runs_after) if age is not None]
    return float(min(ages)) if ages else None


def deletions(leaving: Leaving, rules: Rules, now: float) -> list[Piece]:
    """The pieces of a job that may go.

    What has not ended and what somebody needs keeps all. A registered version, and for a while the chance of a retry,
    keep best and latest checkpoint whatever the rules say; a version keeps its runs too.

    Args:
        leaving: The job.
        rules: The operator's.
        now: Seconds since the epoch.
    """
    if leaving.ended_at is None or leaving.needed_by:
        return []
    age_s = now - leaving.ended_at
    is_held = bool(leaving.versions) or (leaving.can_retry and age_s < duration_s(rules.retry_for))
    after = {
        Kind.CHECKPOINT: rules.checkpoints_after,
        Kind.LOG: rules.logs_after,
        Kind.RUN: rules.runs_after,
    }
    found = []
    for piece in leaving.pieces:
        limit = after[piece.kind]
        if limit is not None and age_s >= duration_s(limit) and not _is_kept(piece, rules, is_held):
            found.append(piece)
    return found


def _is_kept(piece: Piece, rules: Rules, is_held: bool) -> bool:
    if piece.is_remnant:
        return False
    if piece.kind is Kind.RUN:
        return is_held
    best, latest = piece.is_best and (rules.keep_best or is_held), piece.is_latest and (rules.keep_latest or is_held)
    return best or latest
