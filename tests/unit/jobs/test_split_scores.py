"""From counts to scores: hand-computed, and names that never collide."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from segfleet_jobs.protocol import figure_prefix, protocol_label
from segfleet_jobs.split_scores import FIGURES, figures, most_confused, scores_of, split_of_sizes
from segfleet_jobs.tally import Counts
from segfleet_models.inference import WindowConfig
from segfleet_pipelines.manifest import FileInfo, Manifest, SplitInfo

WINDOW = WindowConfig(512, 480, short_side=512)


def manifest(name: str = "road", *splits: str) -> Manifest:
    infos = {split: SplitInfo(1, ()) for split in splits or ("val",)}
    return Manifest(name, ("a", "b"), ((0, 0, 0), (9, 9, 9)), 255, infos, FileInfo("samples.parquet", "0" * 64, 1))


def test_scores_by_hand() -> None:
    matrix = torch.tensor([[8, 2, 0, 0], [1, 3, 0, 0], [0, 0, 5, 0], [0, 0, 0, 0]])
    boundary = torch.tensor([[1, 1, 2, 0], [2, 2, 2, 0], [2, 1, 2, 0]])
    # Class c is in one picture only and large there; d never occurs.
    sizes = np.array([[10, 4, 0, 0], [10, 2, 30, 0]])
    found = scores_of(Counts(matrix, boundary, 2), ("a", "b", "c", "d"), sizes)
    iou = {"a": 8 / 11, "b": 3 / 6, "c": 1.0, "d": None}
    assert found["iou"] == pytest.approx(iou, abs=1e-6)
    assert found["boundary_iou"] == pytest.approx({"a": 1 / 3, "b": 0.5, "c": 1.0, "d": None}, abs=1e-6)
    assert found["miou"] == pytest.approx((8 / 11 + 0.5 + 1) / 3, abs=1e-6)
    assert found["boundary_miou"] == pytest.approx((1 / 3 + 0.5 + 1) / 3, abs=1e-6)
    assert found["pixel_accuracy"] == pytest.approx(16 / 19, abs=1e-6)
    assert found["mean_accuracy"] == pytest.approx((0.8 + 0.75 + 1) / 3, abs=1e-6)
    assert found["size_groups"] == {"small": ["b"], "medium": ["a"], "large": ["c"]}
    assert [found[f"miou_{size}"] for size in ("small", "medium", "large")] == pytest.approx([0.5, 8 / 11, 1], abs=1e-6)


def test_nothing_to_score_is_null_and_no_figure() -> None:
    nothing = Counts(torch.zeros(2, 2, dtype=torch.int64), torch.zeros(3, 2, dtype=torch.int64), 1)
    found = scores_of(nothing, ("a", "b"), np.ones((1, 2), np.int64))
    assert all(found[name] is None for name in FIGURES)
    assert figures(found, "eval/x/") == {}


def test_sizes_are_those_of_the_training_set_if_there_is_one() -> None:
    assert split_of_sizes(manifest("x", "train", "val"), "val") == "train"
    assert split_of_sizes(manifest("x", "test"), "test") == "test"


@pytest.mark.parametrize(
    ("window", "start"),
    [
        (WINDOW, "reference-ss-"),
        (replace(WINDOW, protocol="mmseg", scales=(0.5, 1.0), flip=True), "mmseg-ms2-flip-"),
        (replace(WINDOW, scales=(0.5,)), "reference-ms1-"),
    ],
)
def test_a_protocol_is_called_by_what_matters_most(window: WindowConfig, start: str) -> None:
    assert protocol_label(window, "fp32").startswith(start)


def test_every_setting_makes_another_name() -> None:
    others = [
        replace(WINDOW, stride=512),
        replace(WINDOW, window=480, stride=480),
        replace(WINDOW, short_side=None),
        replace(WINDOW, scales=(0.5, 1.0)),
        replace(WINDOW, scales=(0.75, 1.0)),
        replace(WINDOW, flip=True),
        replace(WINDOW, protocol="mmseg"),
    ]
    labels = {protocol_label(window, "fp32") for window in (WINDOW, *others)} | {protocol_label(WINDOW, "bf16")}
    assert len(labels) == len(others) + 2
    assert protocol_label(replace(WINDOW), "fp32") == protocol_label(WINDOW, "fp32")


def test_figures_are_named_after_content_and_protocol() -> None:
    dataset = manifest("my data: ünïcode " + "x" * 80)
    prefix = figure_prefix(dataset, "val", "reference-ss-12345678")
    assert prefix.startswith("eval/my_data___n_code_xxx")
    assert prefix.endswith(f"-val-{dataset.content_id[:12]}/reference-ss-12345678/")
    assert figure_prefix(manifest("a", "val", "test"), "test", "x") != figure_prefix(manifest("a"), "test", "x")
    document = dict.fromkeys(FIGURES, 0.5) | {"boundary_miou": None}
    assert f"{prefix}miou" in (named := figures(document, prefix))
    assert len(named) == len(FIGURES) - 1


def test_a_large_confusion_matrix_is_cut_to_the_most_confused_classes() -> None:
    matrix = np.diag([100, 90, 80, 70, 0])
    matrix[1, 3], matrix[3, 0], matrix[0, 2] = 20, 9, 1
    names = ["a", "b", "c", "d", "never"]
    whole, all_names = most_confused(matrix, names, limit=4)
    assert (whole == matrix).all()
    assert all_names == names
    small, kept = most_confused(matrix, names, limit=3)
    assert kept == ["d", "b", "(3 others)"]
    assert small.tolist() == [[70, 0, 9], [20, 90, 0], [0, 0, 181]]
    assert small.sum() == matrix.sum()
