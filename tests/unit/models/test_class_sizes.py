from __future__ import annotations

import math

import numpy as np
import pytest

from segfleet_models.class_sizes import group_miou, size_groups


def test_size_groups_go_by_the_mean_area_where_a_class_occurs() -> None:
    # Class 0 is in one picture only and large there; class 3 never occurs.
    class_pixels = np.array([[90, 1, 20, 0, 30, 5, 60], [0, 3, 20, 0, 30, 5, 60], [0, 2, 0, 0, 30, 5, 60]])
    groups = size_groups(class_pixels)
    assert groups == ((1, 5), (2, 4), (6, 0))
    assert [len(group) for group in size_groups(np.arange(1, 151)[None])] == [50, 50, 50]
    iou = (0.9, 0.1, 0.5, 0.0, math.nan, 0.3, 0.7)
    assert group_miou(iou, groups) == pytest.approx((0.2, 0.5, 0.8))
    assert math.isnan(group_miou((math.nan,), ((0,),))[0])
