from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from segfleet.errors import DataError
from segfleet_models.metrics import confusion_matrix, scores
from segfleet_pipelines.datasets.cityscapes import export_prediction, open_cityscapes, to_label_ids
from segfleet_pipelines.datasets.class_table import class_table
from segfleet_pipelines.picture import decode_mask

HEIGHT, WIDTH = 48, 96


def write_scene(root: Path, name: str, rng: np.random.Generator, ids: list[int]) -> None:
    """A picture and its ground truth: blocks of label ids."""
    blocks = rng.choice(ids, (HEIGHT // 8, WIDTH // 8)).repeat(8, axis=0).repeat(8, axis=1)
    city = name.split("_")[0]
    for kind in ("leftImg8bit", "gtFine"):
        (root / kind / "val" / city).mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (WIDTH, HEIGHT)).save(root / f"leftImg8bit/val/{city}/{name}_leftImg8bit.png")
    Image.fromarray(blocks.astype(np.uint8)).save(root / f"gtFine/val/{city}/{name}_gtFine_labelIds.png")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the official evaluator's own code
def test_the_official_evaluator_gives_the_same_miou(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    evaluator = pytest.importorskip("cityscapesscripts.evaluation.evalPixelLevelSemanticLabeling")
    rng = np.random.default_rng(0)
    results = tmp_path / "results"
    results.mkdir()
    for i, ids in enumerate((list(range(34)), [7, 8, 26, 4, 0], [11, 23, 24, 33])):
        write_scene(tmp_path, f"frankfurt_{i:06d}_000019", rng, ids)
    (tmp_path / "leftImg8bit" / "train").symlink_to(tmp_path / "leftImg8bit" / "val")
    (tmp_path / "gtFine" / "train").symlink_to(tmp_path / "gtFine" / "val")
    # The layout needs a training split, whose pictures here have the keys of val: so not by open_dataset.
    samples = open_cityscapes(tmp_path).splits["val"]

    total = torch.zeros(19, 19, dtype=torch.int64)
    table = class_table("cityscapes").labels or {}
    for sample in samples:
        raw = decode_mask(sample.mask.read())
        truth = np.vectorize(table.__getitem__, otypes=[np.uint8])(raw)
        wrong = rng.integers(0, 12, truth.shape)  # some classes are never predicted, ignored pixels are always
        predicted = np.where((truth == 255) | (rng.random(truth.shape) < 0.3), wrong, truth).astype(np.uint8)
        total += confusion_matrix(predicted, truth, 19, 255)
        name, data = export_prediction(predicted, Path(str(sample.image)).stem)
        (results / name).write_bytes(data)

    ours = scores(total)
    args = evaluator.args
    monkeypatch.setattr(args, "predictionPath", str(results))
    monkeypatch.setattr(args, "predictionWalk", None)
    monkeypatch.setattr(args, "quiet", True)
    monkeypatch.setattr(args, "evalInstLevelScore", False)
    monkeypatch.setattr(args, "exportFile", str(tmp_path / "out.json"))
    monkeypatch.setattr(sys, "argv", ["evaluator"])
    monkeypatch.setattr(args, "groundTruthSearch", str(tmp_path / "gtFine/val/*/*_gtFine_labelIds.png"))
    evaluator.main()
    official = json.loads((tmp_path / "out.json").read_text())
    assert official["averageScoreClasses"] == pytest.approx(ours.miou, abs=1e-6)
    for label, name in enumerate(class_table("cityscapes").names):
        assert official["classScores"][name] == pytest.approx(ours.iou[label], abs=1e-6, nan_ok=True)


def test_every_train_id_has_its_label_id() -> None:
    labels = np.arange(19, dtype=np.uint8).reshape(1, 19)
    ids = to_label_ids(labels)
    assert ids.tolist() == [[7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33]]
    with pytest.raises(DataError, match="label 255 is not a Cityscapes train id"):
        to_label_ids(np.array([[0, 255]], np.uint8))


@pytest.mark.parametrize("stem", ["aachen_000000_000019_leftImg8bit", "aachen_000000_000019"])
def test_a_prediction_has_the_official_name_and_is_grey(stem: str) -> None:
    name, data = export_prediction(np.zeros((2, 3), np.uint8), stem)
    assert name == "aachen_000000_000019_pred_labelIds.png"
    image = Image.open(io.BytesIO(data))
    assert (image.mode, image.size, image.getextrema()) == ("L", (3, 2), (7, 7))


@pytest.mark.parametrize("stem", ["street", "aachen_0_19", "../aachen_000000_000019", "aachen_000000_0000190"])
def test_other_names_are_refused(stem: str) -> None:
    with pytest.raises(DataError, match="not named like a Cityscapes picture"):
        export_prediction(np.zeros((2, 3), np.uint8), stem)
