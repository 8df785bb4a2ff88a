"""An evaluation in real gloo processes: each picture once, and the same scores as alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from registered import make_pulled_model
from scoring import score_in_group
from segfleet_jobs.evaluate import Plan, score_split
from segfleet_jobs.ranks import Ranks
from segfleet_jobs.tally import read_rows, read_worst
from segfleet_models.inference import WindowConfig
from segfleet_pipelines.manifest import Manifest
from training import make_dataset

pytestmark = pytest.mark.integration


def make_plan(shards: str, folder: Path, model: Path) -> Plan:
    (folder / "parts").mkdir(parents=True)
    window = WindowConfig(32, 24, scales=(0.75, 1.0), flip=True)
    return Plan(model, shards, "val", Manifest.load(shards), window, "fp32", 3, folder / "parts")


def test_two_ranks_score_as_one_does(tmp_path: Path) -> None:
    shards = make_dataset(tmp_path / "data")
    model = make_pulled_model(tmp_path / "model", ("ground", "red", "green", "blue"))
    alone, group = (make_plan(shards, tmp_path / name, model) for name in ("alone", "group"))
    expected = score_split(alone, Ranks(0, 1, torch.device("cpu")), None)["counts"]
    for found in score_in_group(group, 2, tmp_path):
        assert torch.equal(found["matrix"], expected.matrix)
        assert torch.equal(found["boundary"], expected.boundary)
        assert found["n"] == expected.num_samples == 5
    rows = read_rows(group.parts, 2)
    assert rows.equals(read_rows(alone.parts, 1))
    worst = zip(read_worst(group.parts, 2, rows, 3), read_worst(alone.parts, 1, rows, 3), strict=True)
    assert all(ours[0] == theirs[0] and np.array_equal(ours[1], theirs[1]) for ours, theirs in worst)
