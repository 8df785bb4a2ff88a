"""What an attempt takes of a cluster, for launchers that have to make room themselves."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Needs:
    """Resources and bounds of one attempt.

    Attributes:
        workers: How many it runs with.
        cpus: Of each worker.
        gpus: Of each worker.
        project: Whose it is.
        time_limit_s: The job's limit over all its attempts, seconds; None: it has none.
    """

    workers: int
    cpus: int
    gpus: int
    project: str
    time_limit_s: float | None = None
