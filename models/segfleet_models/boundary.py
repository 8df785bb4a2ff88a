"""Boundary IoU: how well the outlines of the classes fit. K classes.

Cheng, Girshick, Dollar, Berg, Kirillov, "Boundary IoU: Improving Object-Centric Image Segmentation Evaluation", CVPR
2021: the IoU of what lies inside a class and near its outline. Large objects cannot hide a bad outline there.
"""

from __future__ import annotations

import math

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

WIDTH_SHARE = 0.02


def boundary_counts(
    pred: NDArray[np.integer],
    target: NDArray[np.integer],
    num_classes: int,
    ignore_index: int,
    width_share: float = WIDTH_SHARE,
) -> Tensor:
    """Count the pixels near outlines.

    A pixel counts as near if the square of `width` pixels to each side of it holds another class or leaves the picture:
    what the authors' code gets by eroding a class `width` times by 3 x 3. Ignored pixels belong to no class in either
    map, so that both have the same outline there.

    Args:
        pred: Predicted classes in [0, K), (H, W).
        target: True classes in [0, K) or `ignore_index`, (H, W).
        num_classes: K, at most 32,766.
        ignore_index: Pixels with this true label are not counted.
        width_share: Width of the strip inside an outline, as a share of the picture's diagonal, rounded to whole pixels
            and at least one; the paper's is 0.02.

    Returns:
        (3, K), int64: pixels near the outline of their class in both maps, in the truth, in the prediction. Adds up
        over pictures.

    Raises:
        ValueError: the shapes differ.
    """
    if pred.shape != target.shape:
        raise ValueError(f"prediction {pred.shape} and truth {target.shape} differ in shape")
    ignored = target == ignore_index
    # Bytes are dilated in half the time; K itself stands for what is ignored.
    dtype: type[np.integer] = np.uint8 if num_classes <= 255 else np.int16
    truth, guess = (np.where(ignored, num_classes, labels).astype(dtype) for labels in (target, pred))
    width = max(1, round(width_share * math.hypot(*truth.shape)))
    near_truth, near_guess = (_near_outline(labels, width) & ~ignored for labels in (truth, guess))
    both = near_truth & near_guess & (truth == guess)
    pixels = truth[both], truth[near_truth], guess[near_guess]
    return torch.from_numpy(np.stack([np.bincount(labels, minlength=num_classes) for labels in pixels]))


def boundary_iou(counts: Tensor) -> tuple[float, ...]:
    """Boundary IoU per class; nan for a class in neither truth nor prediction.

    Args:
        counts: (3, K), from `boundary_counts` or the sum of several.
    """
    both, truth, guess = counts.double()
    return tuple((both / (truth + guess - both)).tolist())


def _near_outline(labels: NDArray[np.integer], width: int) -> NDArray[np.bool_]:
    """Pixels at most `width` steps (also diagonal ones) from another class or from the outside of the picture."""
    square = np.ones((2 * width + 1, 2 * width + 1), np.uint8)
    near: NDArray[np.bool_] = cv2.dilate(labels, square) != cv2.erode(labels, square)
    near[:width] = near[-width:] = near[:, :width] = near[:, -width:] = True
    return near
