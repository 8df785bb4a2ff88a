"""What an evaluation counts, picture by picture: sums for the whole split, a row a picture, the worst pictures.

The sums are integers, so the result does not depend on how many ranks counted. Rows and worst pictures go through files
in a folder that all ranks share: each rank writes its own, rank 0's driver reads them all.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch import Tensor

from segfleet_jobs.ranks import Ranks
from segfleet_models.boundary import boundary_counts
from segfleet_models.metrics import confusion_matrix
from segfleet_pipelines.batch import EvalSample
from segfleet_pipelines.manifest import Manifest

_COLUMNS: dict[str, pa.DataType] = {
    "index": pa.int64(),
    "key": pa.string(),
    "height": pa.int32(),
    "width": pa.int32(),
    "miou": pa.float64(),
    "pixel_accuracy": pa.float64(),
    "intersection": pa.list_(pa.int64()),
    "union": pa.list_(pa.int64()),
}
ROWS = pa.schema(_COLUMNS)


@dataclass(frozen=True, slots=True)
class Counts:
    """Sums over a split; they add up over ranks.

    Attributes:
        matrix: Confusion matrix, (K, K) int64, rows are the truth.
        boundary: As from `boundary_counts`, (3, K) int64.
        num_samples: Pictures.
    """

    matrix: Tensor
    boundary: Tensor
    num_samples: int


class Tally:
    """One rank's counting.

    Args:
        manifest: Of the dataset.
        num_worst: How many of the worst predictions to keep.
    """

    def __init__(self, manifest: Manifest, num_worst: int) -> None:
        self._num_classes, self._ignore_index = manifest.num_classes, manifest.ignore_index
        self._num_worst = num_worst
        self._matrix = torch.zeros(self._num_classes, self._num_classes, dtype=torch.int64)
        self._boundary = torch.zeros(3, self._num_classes, dtype=torch.int64)
        self._rows: list[dict[str, Any]] = []
        self._worst: list[tuple[float, int, NDArray[np.uint8]]] = []

    def add(self, sample: EvalSample, predicted: NDArray[np.uint8]) -> None:
        """Count one picture."""
        matrix = confusion_matrix(predicted, sample.mask, self._num_classes, self._ignore_index)
        self._matrix += matrix
        self._boundary += boundary_counts(predicted, sample.mask, self._num_classes, self._ignore_index)
        row = picture_row(sample, matrix)
        self._rows.append(row)
        if row["miou"] is not None:
            self._worst.append((row["miou"], sample.index, predicted))
            self._worst.sort(key=lambda entry: entry[:2])
            del self._worst[self._num_worst :]

    def share(self, folder: Path, ranks: Ranks) -> Counts:
        """Write this rank's files, and sum over all ranks; when this returns, the files of all of them are there."""
        pq.write_table(pa.Table.from_pylist(self._rows, schema=ROWS), _rows_file(folder, ranks.rank))
        arrays: Mapping[str, Any] = {str(index): predicted for _, index, predicted in self._worst}
        np.savez(_worst_file(folder, ranks.rank), **arrays)
        own = torch.cat([self._matrix.flatten(), self._boundary.flatten(), torch.tensor([len(self._rows)])])
        summed = ranks.sum_(own.to(ranks.device)).cpu()
        cells = self._num_classes**2
        return Counts(summed[:cells].view_as(self._matrix), summed[cells:-1].view_as(self._boundary), int(summed[-1]))


def picture_row(sample: EvalSample, matrix: Tensor) -> dict[str, Any]:
    """Scores of a single picture; null where no pixel is labelled.

    Args:
        sample: The picture.
        matrix: Its confusion matrix, (K, K).
    """
    counts = matrix.numpy()
    right = counts.diagonal()
    union = counts.sum(axis=0) + counts.sum(axis=1) - right
    present, labelled = union > 0, int(counts.sum())
    height, width = sample.mask.shape
    return {
        "index": sample.index,
        "key": sample.key,
        "height": height,
        "width": width,
        "miou": float((right[present] / union[present]).mean()) if labelled else None,
        "pixel_accuracy": float(right.sum() / labelled) if labelled else None,
        "intersection": right,
        "union": union,
    }


def read_rows(folder: Path, world_size: int) -> pa.Table:
    """The rows of all ranks, in the order of the split."""
    parts = [pq.read_table(_rows_file(folder, rank)) for rank in range(world_size)]
    return pa.concat_tables(parts).sort_by("index")


def read_worst(folder: Path, world_size: int, rows: pa.Table, count: int) -> list[tuple[int, NDArray[np.uint8]]]:
    """Index and prediction of the pictures of the lowest mIoU, the worst first; ties go by index."""
    scored = rows.filter(pc.is_valid(rows["miou"]))
    ordered = scored.sort_by([("miou", "ascending"), ("index", "ascending")])
    worst = []
    for index in ordered["index"].to_numpy()[:count].tolist():
        # What is among the worst of all is among the worst of its rank; rank r has the samples r, r + R, ...
        with np.load(_worst_file(folder, index % world_size), allow_pickle=False) as kept:
            worst.append((index, kept[str(index)]))
    return worst


def _rows_file(folder: Path, rank: int) -> Path:
    return folder / f"rows-{rank:05d}.parquet"


def _worst_file(folder: Path, rank: int) -> Path:
    return folder / f"worst-{rank:05d}.npz"
