"""Counting an evaluation: sums, rows and worst pictures, the same for any number of ranks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from segfleet_jobs.ranks import Ranks
from segfleet_jobs.tally import Counts, Tally, picture_row, read_rows, read_worst
from segfleet_models.metrics import confusion_matrix
from segfleet_pipelines.batch import EvalSample
from segfleet_pipelines.manifest import FileInfo, Manifest, SplitInfo

K = 4
MANIFEST = Manifest(
    "four",
    ("a", "b", "c", "never"),
    ((0, 0, 0), (1, 1, 1), (2, 2, 2), (3, 3, 3)),
    255,
    {"val": SplitInfo(7, ())},
    FileInfo("samples.parquet", "0" * 64, 1),
)
Pair = tuple[EvalSample, NDArray[np.uint8]]


def sample(index: int, mask: NDArray[np.uint8]) -> EvalSample:
    return EvalSample(index, f"k{index}", np.zeros((*mask.shape, 3), np.uint8), mask)


def pictures() -> list[Pair]:
    rng = np.random.default_rng(0)
    made = []
    for index in range(7):
        shape = (12 + index, 20)
        truth, guess = (rng.integers(0, 3, shape, dtype=np.uint8) for _ in range(2))
        truth[rng.random(shape) < 0.1] = 255
        guess = np.where(rng.random(shape) < index / 7, guess, np.where(truth == 255, 0, truth))
        made.append((sample(index, truth), guess))
    return made


def count(pairs: list[Pair], folder: Path, world_size: int, num_worst: int) -> list[Counts]:
    """What each rank has, before it is summed."""
    folder.mkdir()
    parts = []
    for rank in range(world_size):
        tally = Tally(MANIFEST, num_worst)
        for pair in pairs[rank::world_size]:
            tally.add(*pair)
        parts.append(tally.share(folder, Ranks(rank, 1, torch.device("cpu"))))
    return parts


def test_a_picture_is_scored_over_the_classes_in_truth_or_prediction() -> None:
    truth = np.array([[0, 0, 1, 255]], np.uint8)
    guess = np.array([[0, 1, 1, 2]], np.uint8)
    row = picture_row(sample(5, truth), confusion_matrix(guess, truth, K, 255))
    assert (row["index"], row["key"], row["height"], row["width"]) == (5, "k5", 1, 4)
    assert row["intersection"].tolist() == [1, 1, 0, 0]
    assert row["union"].tolist() == [2, 2, 0, 0]
    assert row["miou"] == pytest.approx(0.5)
    assert row["pixel_accuracy"] == pytest.approx(2 / 3)


def test_a_picture_without_a_labelled_pixel_has_no_score_and_is_not_among_the_worst(tmp_path: Path) -> None:
    empty = sample(0, np.full((4, 4), 255, np.uint8)), np.zeros((4, 4), np.uint8)
    (counts,) = count([empty], tmp_path / "one", 1, 3)
    rows = read_rows(tmp_path / "one", 1)
    assert rows["miou"].to_pylist() == rows["pixel_accuracy"].to_pylist() == [None]
    assert read_worst(tmp_path / "one", 1, rows, 3) == []
    assert (counts.num_samples, int(counts.matrix.sum())) == (1, 0)


@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
def test_any_number_of_ranks_finds_the_same(tmp_path: Path, world_size: int) -> None:
    pairs = pictures()
    parts = count(pairs, tmp_path / "parts", world_size, 2)
    naive = [confusion_matrix(guess, one.mask, K, 255) for one, guess in pairs]
    assert sum(part.num_samples for part in parts) == 7
    assert torch.equal(torch.stack([part.matrix for part in parts]).sum(0), torch.stack(naive).sum(0))
    (whole,) = count(pairs, tmp_path / "whole", 1, 2)
    assert torch.equal(torch.stack([part.boundary for part in parts]).sum(0), whole.boundary)
    rows = read_rows(tmp_path / "parts", world_size)
    assert rows.equals(read_rows(tmp_path / "whole", 1))
    assert rows["key"].to_pylist() == [f"k{i}" for i in range(7)]
    assert np.array(rows["intersection"].to_pylist()).sum(axis=0).tolist() == whole.matrix.diagonal().tolist()
    order = sorted(range(7), key=lambda i: rows["miou"][i].as_py())
    worst = read_worst(tmp_path / "parts", world_size, rows, 2)
    assert [index for index, _ in worst] == order[:2]
    assert all(np.array_equal(predicted, pairs[index][1]) for index, predicted in worst)


def test_no_worst_pictures_are_kept_if_none_are_wanted(tmp_path: Path) -> None:
    count(pictures(), tmp_path / "none", 1, 0)
    rows = read_rows(tmp_path / "none", 1)
    assert read_worst(tmp_path / "none", 1, rows, 0) == []
