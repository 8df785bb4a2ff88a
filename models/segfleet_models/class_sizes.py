"""Scores by the size of the classes: the paper's table 4. K classes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray


def size_groups(class_pixels: NDArray[np.integer]) -> tuple[tuple[int, ...], ...]:
    """Three groups of classes, as in the paper's table 4: small, medium, large.

    The paper does not say how it measures size. Here it is the mean area, in pixels, over the pictures of the training
    set in which the class occurs. Ties go by class number.

    Args:
        class_pixels: Pixels of each class in each picture of the training set, (N, K).

    Returns:
        Classes of each group, smallest class first, as many in each as can be; without classes that never occur.
    """
    num_pictures = np.count_nonzero(class_pixels, axis=0)
    areas = class_pixels.sum(axis=0) / np.maximum(num_pictures, 1)
    order = np.argsort(areas, kind="stable")
    return tuple(tuple(group.tolist()) for group in np.array_split(order[num_pictures[order] > 0], 3))


def group_miou(iou: Sequence[float], groups: Sequence[Sequence[int]]) -> tuple[float, ...]:
    """Mean IoU of each group of classes over those that appear; nan if none does.

    Args:
        iou: Per class, as in `Scores`.
        groups: As from `size_groups`.
    """
    per_class = torch.tensor(iou, dtype=torch.float64)
    return tuple(float(per_class[list(group)].nanmean()) for group in groups)
