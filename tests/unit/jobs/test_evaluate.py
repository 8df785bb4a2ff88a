"""An evaluation's work on one rank, and what it leaves behind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from registered import make_pulled_model
from segfleet.errors import DataError, ModelError
from segfleet.spec.sections import EvalSpec
from segfleet_jobs.evaluate import Plan, check_classes, score_split, write_files
from segfleet_jobs.evaluation import evaluate
from segfleet_jobs.model_record import ModelVersion
from segfleet_jobs.ranks import Ranks
from segfleet_jobs.registered_model import load_registered
from segfleet_jobs.split_scores import class_pixels, scores_of
from segfleet_models.inference import WindowConfig
from segfleet_pipelines.manifest import Manifest
from training import make_dataset

CLASSES = ("ground", "red", "green", "blue")
ALONE = Ranks(0, 1, torch.device("cpu"))
WINDOW = WindowConfig(32, 24)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_dataset(tmp_path_factory.mktemp("boxes"))


def make_plan(folder: Path, shards: str, **changes: Any) -> Plan:
    (folder / "parts").mkdir()
    values = {
        "model": make_pulled_model(folder / "model", CLASSES),
        "shards": shards,
        "split": "val",
        "manifest": Manifest.load(shards),
        "window": WINDOW,
        "precision": "fp32",
        "num_worst": 2,
        "parts": folder / "parts",
    }
    return Plan(**(values | changes))


def test_scores_equal_those_of_a_validation(shards: str, tmp_path: Path) -> None:
    plan, told = make_plan(tmp_path, shards), list[dict[str, Any]]()
    counts = score_split(plan, ALONE, told.append)["counts"]
    model = load_registered(plan.model).stored.model
    validation = evaluate(model, shards, "val", EvalSpec(window=32, stride=24), manifest=plan.manifest, ranks=ALONE)
    assert torch.equal(counts.matrix, validation.matrix)
    assert counts.num_samples == 5
    assert [(entry["step"], entry["num_steps"]) for entry in told] == [(done, 5) for done in range(1, 6)]
    assert told[-1]["eta_s"] == 0
    assert told[0]["phase"] == "evaluate"


def test_half_precision_scores_about_the_same(shards: str, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "half").mkdir()
    full = score_split(make_plan(tmp_path / "full", shards), ALONE, None)["counts"]
    half = score_split(make_plan(tmp_path / "half", shards, precision="bf16"), ALONE, None)["counts"]
    moved = (full.matrix - half.matrix).abs().sum() / full.matrix.sum()
    assert 0 < moved < 0.1  # another precision indeed, and not another result


def test_what_is_kept_with_the_model(shards: str, tmp_path: Path) -> None:
    plan = make_plan(tmp_path, shards)
    counts = score_split(plan, ALONE, None)["counts"]
    document = {"workers": 1, **scores_of(counts, CLASSES, class_pixels(shards, "train"))}
    out = tmp_path / "out"
    out.mkdir()
    write_files(out, plan, counts, document)
    assert {path.name for path in out.iterdir()} == {"scores.json", "pictures.parquet", "confusion.png", "worst.png"}
    kept = json.loads((out / "scores.json").read_text())
    assert kept["confusion"] == counts.matrix.tolist()
    rows = pq.read_table(out / "pictures.parquet")
    intersection, union = (np.array(rows[name].to_pylist()).sum(axis=0) for name in ("intersection", "union"))
    iou = [None if u == 0 else i / u for i, u in zip(intersection.tolist(), union.tolist(), strict=True)]
    assert list(kept["iou"].values()) == pytest.approx(iou, abs=1e-6)
    for name in ("confusion.png", "worst.png"):
        with Image.open(out / name) as picture:
            assert min(picture.size) > 100


def test_a_dataset_that_was_exchanged_meanwhile_is_noticed(shards: str, tmp_path: Path) -> None:
    other = make_dataset(tmp_path / "other", seed=1)
    plan = make_plan(tmp_path, other, manifest=Manifest.load(shards))
    with pytest.raises(DataError, match="content id"):
        score_split(plan, ALONE, None)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("ground", "green", "red", "blue"), r"class 1 is 'green' in the model and 'red' in the dataset"),
        (("ground", "red"), r"boxes/2 has 2 classes and dataset '.*' has 4; class 2 is none in the model and 'green'"),
    ],
)
def test_other_classes_are_refused(names: tuple[str, ...], message: str, shards: str) -> None:
    manifest, version = Manifest.load(shards), ModelVersion("boxes", "2", "run")
    check_classes(version, CLASSES, manifest)
    with pytest.raises(ModelError, match=message):
        check_classes(version, names, manifest)
