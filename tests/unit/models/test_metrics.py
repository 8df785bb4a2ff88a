from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from segfleet_models.metrics import confusion_matrix, scores


@pytest.mark.parametrize(
    ("dtype", "ignore_index"),
    [
        (torch.uint8, 255),
        (torch.uint8, 2),
        (torch.uint8, 0),
        (torch.int16, -1),
        (torch.int64, -1),
        (torch.int64, 2**40),
    ],
)
def test_counts_like_a_loop_over_pixels(dtype: torch.dtype, ignore_index: int) -> None:
    generator = torch.Generator().manual_seed(0)
    target = torch.randint(0, 4, (13, 17), generator=generator).to(dtype)
    pred = torch.randint(0, 4, (13, 17), generator=generator).to(dtype)
    target[:3] = ignore_index
    expected = torch.zeros(4, 4, dtype=torch.int64)
    for truth, guess in zip(target.flatten().tolist(), pred.flatten().tolist(), strict=True):
        if truth != ignore_index:
            expected[truth, guess] += 1
    matrix = confusion_matrix(pred, target, 4, ignore_index)
    assert torch.equal(matrix, expected)
    assert matrix.dtype == torch.int64


def test_takes_arrays_and_leaves_them_alone() -> None:
    pred, target = np.array([[0, 1]], dtype=np.uint8), np.array([[1, 255]], dtype=np.uint8)
    assert confusion_matrix(pred, target, 2, 255).tolist() == [[0, 0], [1, 0]]
    assert target.tolist() == [[1, 255]]


def test_nothing_gives_zeros() -> None:
    for dtype in (torch.uint8, torch.int64):
        empty = torch.zeros(0, dtype=dtype)
        assert confusion_matrix(empty, empty, 2, 255).tolist() == [[0, 0], [0, 0]]
        everything_ignored = torch.full((4,), 255, dtype=dtype)
        assert not confusion_matrix(torch.zeros(4, dtype=dtype), everything_ignored, 2, 255).any()


@pytest.mark.parametrize("ignore_index", [255, -1, 300, 7])
@pytest.mark.parametrize("num_classes", [150, 256])
def test_bytes_are_counted_like_wider_integers(num_classes: int, ignore_index: int) -> None:
    generator = torch.Generator().manual_seed(0)
    pred, target = torch.randint(0, 150, (2, 90, 70), generator=generator)
    target[:9] = ignore_index if 0 <= ignore_index <= 255 else 0
    assert torch.equal(
        confusion_matrix(pred.byte(), target.byte().T.contiguous().T, num_classes, ignore_index),
        confusion_matrix(pred, target, num_classes, ignore_index),
    )


@pytest.mark.parametrize("num_classes", [3, 150, 300])
def test_counts_parts_of_larger_maps(num_classes: int) -> None:
    rng = np.random.default_rng(num_classes)
    dtype = np.uint8 if num_classes <= 256 else np.int16
    pred, target = rng.integers(0, num_classes, (2, 61, 90)).astype(dtype)
    target[rng.random(target.shape) < 0.1] = 255 if num_classes <= 255 else -1
    before = target.copy()
    expected = np.zeros((num_classes, num_classes), np.int64)
    valid = target[::2, 1::3] >= 0 if num_classes > 255 else target[::2, 1::3] != 255
    np.add.at(expected, (target[::2, 1::3][valid], pred[::2, 1::3][valid]), 1)
    ignore_index = 255 if num_classes <= 255 else -1
    matrix = confusion_matrix(pred[::2, 1::3], target[::2, 1::3], num_classes, ignore_index)
    assert np.array_equal(matrix.numpy(), expected)
    assert np.array_equal(target, before)
    mixed = confusion_matrix(pred.T, np.asfortranarray(target.T), num_classes, ignore_index)
    assert torch.equal(mixed, confusion_matrix(pred, target, num_classes, ignore_index))


@pytest.mark.parametrize(
    ("pred", "target", "message"),
    [
        ([0, 2], [0, 1], "prediction holds labels 0..2; the classes are 0..1"),
        ([0, 0], [0, 7], "truth holds labels 0..7"),
        ([0, 0], [0, -1], "truth holds labels -1..0"),
        ([0, -1], [0, 1], "prediction holds labels -1..0"),
        ([0], [0, 1], "differ in shape"),
    ],
)
def test_refuses_labels_that_are_no_class(pred: list[int], target: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        confusion_matrix(torch.tensor(pred), torch.tensor(target), 2, 255)
    if min(pred + target) >= 0:  # as bytes too
        with pytest.raises(ValueError, match=message):
            confusion_matrix(torch.tensor(pred).byte(), torch.tensor(target).byte(), 2, 255)


def test_scores_by_hand() -> None:
    # Class 2 is nowhere; class 3 is only ever predicted, so it has an IoU of 0 but no recall.
    matrix = torch.tensor([[6, 2, 0, 0], [1, 3, 0, 2], [0, 0, 0, 0], [0, 0, 0, 0]])
    result = scores(matrix)
    assert result.iou[:2] == pytest.approx((6 / 9, 3 / 8))
    assert math.isnan(result.iou[2])
    assert result.iou[3] == 0
    assert result.miou == pytest.approx((6 / 9 + 3 / 8 + 0) / 3)
    assert result.mean_accuracy == pytest.approx((6 / 8 + 3 / 6) / 2)
    assert result.pixel_accuracy == pytest.approx(9 / 14)


def test_scores_of_nothing_are_nan() -> None:
    result = scores(torch.zeros(2, 2, dtype=torch.int64))
    assert all(math.isnan(value) for value in (result.miou, result.pixel_accuracy, result.mean_accuracy, *result.iou))


@pytest.mark.parametrize("run", [1, 4, 7, 50, 1000])
def test_runs_of_any_length_are_counted_like_single_pixels(run: int) -> None:
    random = np.random.default_rng(run)
    truth = np.repeat(random.integers(0, 6, 1000, dtype=np.uint8), run)[:900].reshape(30, 30)
    pred = np.repeat(random.integers(0, 5, 1000, dtype=np.uint8), run)[:900].reshape(30, 30)
    truth[truth == 5] = 255
    expected = np.zeros((5, 5), dtype=np.int64)
    valid = truth != 255
    np.add.at(expected, (truth[valid], pred[valid]), 1)
    assert confusion_matrix(pred, truth, 5, 255).tolist() == expected.tolist()


def test_an_empty_picture_counts_nothing() -> None:
    empty = np.zeros((0, 4), dtype=np.uint8)
    assert not confusion_matrix(empty, empty, 3, 255).any()
