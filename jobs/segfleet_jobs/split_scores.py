"""From an evaluation's counts to its scores as plain data."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segfleet_jobs.evaluation import majority_baseline
from segfleet_jobs.tally import Counts
from segfleet_models.boundary import boundary_iou
from segfleet_models.class_sizes import group_miou, size_groups
from segfleet_models.metrics import scores
from segfleet_pipelines.manifest import Manifest
from segfleet_pipelines.reader import SampleIndex

SIZES = ("small", "medium", "large")
FIGURES = (
    "miou",
    "pixel_accuracy",
    "mean_accuracy",
    "boundary_miou",
    *(f"miou_{size}" for size in SIZES),
)
_TRAINING_SPLIT = "train"
# Rows of a confusion matrix that a person still reads.
_MOST_SHOWN = 40


def split_of_sizes(manifest: Manifest, evaluated: str) -> str:
    """The split whose pictures say how large a class is: the training set, or what is evaluated if there is none."""
    return _TRAINING_SPLIT if _TRAINING_SPLIT in manifest.splits else evaluated


def class_pixels(location: str, split: str) -> NDArray[np.int64]:
    """Pixels of each class in each picture of a split, (N, K)."""
    return SampleIndex.load(location, split).class_pixels


def scores_of(counts: Counts, names: Sequence[str], sizes_from: NDArray[np.integer]) -> dict[str, Any]:
    """All scores of a split; absent classes are null, and left out of every mean.

    Args:
        counts: Over all ranks.
        names: Of the K classes.
        sizes_from: Pixels of each class in each picture of the set that says how large a class is, (N, K).
    """
    plain, near = scores(counts.matrix), boundary_iou(counts.boundary)
    groups = size_groups(sizes_from)
    by_size = dict(zip(SIZES, group_miou(plain.iou, groups), strict=True))
    return {
        "miou": _plain(plain.miou),
        "pixel_accuracy": _plain(plain.pixel_accuracy),
        "mean_accuracy": _plain(plain.mean_accuracy),
        "boundary_miou": _plain(float(np.nanmean(near)) if not all(map(math.isnan, near)) else math.nan),
        **{f"miou_{size}": _plain(value) for size, value in by_size.items()},
        "baseline_miou": _plain(majority_baseline(counts.matrix)),
        "num_samples": counts.num_samples,
        "iou": dict(zip(names, map(_plain, plain.iou), strict=True)),
        "boundary_iou": dict(zip(names, map(_plain, near), strict=True)),
        "size_groups": {size: [names[i] for i in group] for size, group in zip(SIZES, groups, strict=True)},
    }


def figures(document: Mapping[str, Any], prefix: str) -> dict[str, float]:
    """The few figures that stand for an evaluation in a run and at a model version, by their full names."""
    return {f"{prefix}{name}": document[name] for name in FIGURES if document[name] is not None}


def most_confused(
    matrix: NDArray[np.integer], names: Sequence[str], limit: int = _MOST_SHOWN
) -> tuple[NDArray[np.int64], list[str]]:
    """A confusion matrix that is still readable: if many classes occur, the most confused ones and all others as one.

    Args:
        matrix: Pixels, (K, K), rows are the truth.
        names: Of the K classes.
        limit: How many classes to keep, the one of all others included.

    Returns:
        The matrix and its names. Classes that are cut down to come by wrong pixels, as truth or as prediction, the most
        first; sums of rows and columns are kept.
    """
    counts = np.asarray(matrix, np.int64)
    if np.count_nonzero(counts.sum(axis=0) + counts.sum(axis=1)) <= limit:
        return counts, list(names)
    wrong = counts.sum(axis=0) + counts.sum(axis=1) - 2 * counts.diagonal()
    order = np.argsort(-wrong, kind="stable")
    kept, others = order[: limit - 1], order[limit - 1 :]
    small = np.zeros((limit, limit), np.int64)
    small[:-1, :-1] = counts[np.ix_(kept, kept)]
    small[:-1, -1], small[-1, :-1] = counts[np.ix_(kept, others)].sum(axis=1), counts[np.ix_(others, kept)].sum(axis=0)
    small[-1, -1] = counts[np.ix_(others, others)].sum()
    return small, [*(names[i] for i in kept.tolist()), f"({len(others)} others)"]


def _plain(value: float) -> float | None:
    return None if math.isnan(value) else round(float(value), 6)
