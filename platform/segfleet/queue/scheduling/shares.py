"""Fair shares: what each project has used, in seconds of the whole cluster, and fading with time."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from segfleet.queue.scheduling.values import Gang, Node

HALF_LIFE_S = 7 * 86_400.0


@dataclass(frozen=True, slots=True)
class Usage:
    """A stretch of time in which a project held a share of the cluster.

    Attributes:
        share: Dominant share: the larger of its shares of all CPUs and all GPUs, 0..1.
        end: None: it still does.
    """

    project: str
    share: float
    start: float
    end: float | None


def dominant_share(gang: Gang, workers: int, nodes: Iterable[Node]) -> float:
    """The larger of a gang's shares of all CPUs and of all GPUs (Ghodsi et al. 2011)."""
    cpus = gpus = 0
    for node in nodes:
        cpus, gpus = cpus + node.cpus, gpus + node.gpus
    return max(workers * gang.cpus / cpus if cpus else 0.0, workers * gang.gpus / gpus if gpus else 0.0)


def decayed_use(usages: Iterable[Usage], now: float, half_life_s: float = HALF_LIFE_S) -> dict[str, float]:
    """Each project's use: an hour counts half after one half-life.

    Returns:
        Seconds of the whole cluster, by project.
    """
    parts: dict[str, list[float]] = {}
    for usage in usages:
        end = now if usage.end is None else min(usage.end, now)
        # The integral of share * 2^((t - now) / half_life) from start to end.
        scale = half_life_s / math.log(2.0)
        seconds = scale * (2.0 ** ((end - now) / half_life_s) - 2.0 ** ((min(usage.start, end) - now) / half_life_s))
        parts.setdefault(usage.project, []).append(usage.share * seconds)
    # `fsum` is exact, so the order of the stretches cannot decide a tie.
    return {project: math.fsum(seconds) for project, seconds in parts.items()}


def weighted(use: Mapping[str, float], weights: Mapping[str, float], project: str) -> float:
    """A project's use relative to what it is entitled to; the lowest is served first."""
    return use.get(project, 0.0) / weights.get(project, 1.0)
