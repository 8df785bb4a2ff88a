"""Segmentation scores from a confusion matrix, which adds up over pictures and ranks.

K classes; rows of a matrix are the truth, columns the prediction.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

IntArray = Tensor | NDArray[np.integer]
# With shorter runs than these, one by one is quicker.
_PIXELS_PER_RUN = 6


@dataclass(frozen=True)
class Scores:
    """Scores of a set of pictures, each in [0, 1]; nan where nothing was there to score.

    Attributes:
        miou: Mean IoU over the classes that appear in truth or prediction.
        pixel_accuracy: Share of the valid pixels that are right.
        mean_accuracy: Mean recall over the classes that appear in the truth.
        iou: Intersection over union per class; nan for a class in neither truth nor prediction.
    """

    miou: float
    pixel_accuracy: float
    mean_accuracy: float
    iou: tuple[float, ...]


def confusion_matrix(pred: IntArray, target: IntArray, num_classes: int, ignore_index: int) -> Tensor:
    """Count pixels by true and predicted class.

    Args:
        pred: Predicted classes in [0, K), integers of any shape.
        target: True classes or `ignore_index`, same shape.
        num_classes: K.
        ignore_index: Pixels with this true label are not counted.

    Returns:
        (K, K), int64, on the inputs' device.

    Raises:
        ValueError: shapes differ, or a label is neither a class nor `ignore_index`.
    """
    pred, target = torch.as_tensor(pred), torch.as_tensor(target)
    if pred.shape != target.shape:
        raise ValueError(f"prediction {tuple(pred.shape)} and truth {tuple(target.shape)} differ in shape")
    is_bytes = pred.dtype == target.dtype == torch.uint8 and pred.device.type == target.device.type == "cpu"
    if is_bytes and num_classes <= 256:
        return _count_bytes(pred, target, num_classes, ignore_index)
    ignored = target == ignore_index
    classes = target.masked_fill(ignored, 0)
    _check_labels("prediction", pred, num_classes)
    _check_labels("truth", classes, num_classes)
    cells = classes.to(torch.int32).mul_(num_classes).add_(pred.to(torch.int32))
    # One cell past the matrix collects what is ignored: cheaper than picking the valid pixels out first.
    cells.masked_fill_(ignored, num_classes * num_classes)
    counts = torch.bincount(cells.flatten(), minlength=num_classes * num_classes + 1)
    return counts[:-1].view(num_classes, num_classes)


def _count_bytes(pred: Tensor, target: Tensor, num_classes: int, ignore_index: int) -> Tensor:
    """Count all pairs of bytes first, then check and pick the classes in the table: fewer passes over the pixels."""
    pairs = target.numpy().astype(np.uint16).ravel()
    # In place: fresh pages would cost as much as the counting.
    pairs <<= 8
    pairs |= pred.numpy().ravel()
    counts = torch.from_numpy(_count_pairs(pairs)).view(256, 256)
    _check_labels("prediction", counts.sum(dim=0).nonzero(), num_classes)
    if 0 <= ignore_index <= 255:
        counts[ignore_index] = 0
    _check_labels("truth", counts.sum(dim=1).nonzero(), num_classes)
    return counts[:num_classes, :num_classes].contiguous()


def _count_pairs(pairs: NDArray[np.uint16]) -> NDArray[np.int64]:
    """How often each of 2^16 values occurs. Label maps are made of runs: those are counted by their lengths."""
    begins = np.flatnonzero(pairs[1:] != pairs[:-1]) + 1
    if begins.size * _PIXELS_PER_RUN >= pairs.size:
        return np.bincount(pairs, minlength=2**16)
    begins = np.concatenate(([0], begins))
    # Sums of whole numbers far below 2^53 are exact.
    lengths = np.diff(begins, append=pairs.size)
    return np.bincount(pairs[begins], weights=lengths, minlength=2**16).astype(np.int64)


def scores(matrix: Tensor) -> Scores:
    """Score a confusion matrix, or the sum of several.

    Args:
        matrix: (K, K) pixel counts, rows truth.
    """
    counts = matrix.to("cpu", torch.float64)
    right, truth, predicted = counts.diagonal(), counts.sum(dim=1), counts.sum(dim=0)
    iou = right / (truth + predicted - right)  # 0 / 0 is nan: an absent class
    return Scores(
        miou=float(iou.nanmean()),
        pixel_accuracy=float(right.sum() / counts.sum()),
        mean_accuracy=float((right / truth).nanmean()),
        iou=tuple(iou.tolist()),
    )


def _check_labels(name: str, labels: Tensor, num_classes: int) -> None:
    if labels.numel() == 0:
        return
    least, most = (int(label) for label in labels.aminmax())
    if least < 0 or most >= num_classes:
        raise ValueError(f"the {name} holds labels {least}..{most}; the classes are 0..{num_classes - 1}")
