"""A training killed at random moments ends as the undisturbed one; the long form is `python tests/kill_points.py`."""

from __future__ import annotations

from pathlib import Path

import pytest

from kill_points import phases_of, run_points
from training import make_dataset

pytestmark = pytest.mark.integration


@pytest.mark.parametrize(("world_size", "points", "seed"), [(1, 4, 3), (2, 2, 5)])
def test_a_killed_training_ends_as_the_undisturbed_one(tmp_path: Path, world_size: int, points: int, seed: int) -> None:
    shards = make_dataset(tmp_path)
    found = run_points(shards, tmp_path / "runs", world_size, points, seed)
    assert [point.kills[-1].phase for point in found] == list(phases_of(world_size)[:points])
    assert [point.differences for point in found] == [()] * points
