from __future__ import annotations

import math

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from segfleet_models.boundary import boundary_counts, boundary_iou
from segfleet_models.metrics import confusion_matrix, scores


def plain_boundary(mask: NDArray[np.bool_], width: int) -> NDArray[np.bool_]:
    """The mask less what is left of it after wearing it away a pixel at a time, the outside of the picture included."""
    padded = np.pad(mask.astype(np.uint8), 1)
    return mask & (cv2.erode(padded, np.ones((3, 3), np.uint8), iterations=width)[1:-1, 1:-1] == 0)


def test_boundary_iou_equals_that_of_each_class_by_itself() -> None:
    rng = np.random.default_rng(0)
    pred, target = (np.kron(rng.integers(0, 3, (6, 8), dtype=np.uint8), np.ones((10, 10), np.uint8)) for _ in range(2))
    target[:7, :20] = 255
    assert max(1, round(0.02 * math.hypot(60, 80))) == 2
    expected = []
    for number in range(3):
        valid = target != 255
        truth, guess = (plain_boundary((labels == number) & valid, 2) for labels in (target, pred))
        expected.append((truth & guess).sum() / (truth | guess).sum())
    halves = boundary_counts(pred, target, 4, 255)
    assert boundary_iou(halves)[:3] == pytest.approx(expected)
    assert boundary_iou(halves + halves)[:3] == pytest.approx(expected)  # adds up
    assert math.isnan(boundary_iou(halves)[3])
    assert boundary_iou(boundary_counts(pred, pred, 3, 255)) == (1, 1, 1)
    many = boundary_counts(pred.astype(np.int64), target.astype(np.int64), 300, 255)
    assert boundary_iou(many)[:3] == pytest.approx(expected)


def test_boundary_iou_sees_an_outline_that_the_iou_does_not() -> None:
    truth, grown = np.zeros((2, 200, 200), np.uint8)
    truth[50:150, 50:150] = grown[47:153, 47:153] = 1
    plain = scores(confusion_matrix(grown, truth, 2, 255)).iou[1]
    near = boundary_iou(boundary_counts(grown, truth, 2, 255))[1]
    assert plain > 0.85
    assert near < 0.4
    with pytest.raises(ValueError, match="differ in shape"):
        boundary_counts(grown[:-1], truth, 2, 255)
