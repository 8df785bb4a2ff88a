from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from registered import make_pulled_model
from segfleet.errors import DataError
from segfleet_jobs.predict import Outcome, Predictor, Wishes
from segfleet_jobs.prediction_inputs import find_sources
from segfleet_jobs.registered_model import load_registered
from segfleet_pipelines.datasets.class_table import class_table

CAR = 13


def predicted(
    folder: Path, stem: str, names: list[str], label_ids: str | None, *, skip_existing: bool = False
) -> Outcome:
    Image.new("RGB", (6, 4)).save(folder / f"{stem}.png")
    model = load_registered(make_pulled_model(folder / "model", names, always=CAR))
    wishes = Wishes(folder / "out", label_ids=label_ids, skip_existing=skip_existing)
    return Predictor(model, wishes).run(find_sources([str(folder / f"{stem}.png")], wishes.out), lambda _: None)


@pytest.mark.parametrize("label_ids", ["cityscapes", None])
def test_label_ids_are_written_besides_in_a_folder_of_their_own(label_ids: str | None, tmp_path: Path) -> None:
    names = class_table("cityscapes").names
    (entry,) = predicted(tmp_path, "bonn_000001_000019_leftImg8bit", names, label_ids).predictions
    assert entry["shares"] == {"car": 1.0}
    assert (np.array(Image.open(entry["mask"])) == CAR).all()
    if label_ids is None:
        assert "label_ids" not in entry
        assert not (tmp_path / "out" / "labelIds").exists()
        return
    written = Path(entry["label_ids"])
    assert written == tmp_path / "out" / "labelIds" / "bonn_000001_000019_pred_labelIds.png"
    assert list(written.parent.iterdir()) == [written]
    assert (np.array(Image.open(written)) == 26).all()


def test_a_model_of_other_classes_has_no_label_ids(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="classes are not those of cityscapes"):
        predicted(tmp_path, "bonn_000001_000019_leftImg8bit", [f"class {i}" for i in range(19)], "cityscapes")


def test_a_picture_of_another_name_fails_and_leaves_nothing(tmp_path: Path) -> None:
    outcome = predicted(tmp_path, "x", class_table("cityscapes").names, "cityscapes")
    assert "not named like a Cityscapes picture" in outcome.failed[0]["reason"]
    assert not outcome.predictions
    assert not (tmp_path / "out").exists()


def test_a_stranger_s_label_ids_stay_and_missing_ones_are_made_again(tmp_path: Path) -> None:
    names, stem = class_table("cityscapes").names, "bonn_000001_000019_leftImg8bit"
    (tmp_path / "out" / "labelIds").mkdir(parents=True)
    strangers = tmp_path / "out" / "labelIds" / "bonn_000001_000019_pred_labelIds.png"
    strangers.write_bytes(b"by hand")
    assert "is no result of" in predicted(tmp_path, stem, names, "cityscapes").failed[0]["reason"]
    assert strangers.read_bytes() == b"by hand"
    strangers.unlink()
    shutil.rmtree(tmp_path / "model")
    assert predicted(tmp_path, stem, names, "cityscapes").predictions
    strangers.unlink()
    shutil.rmtree(tmp_path / "model")
    again = predicted(tmp_path, stem, names, "cityscapes", skip_existing=True)
    assert again.predictions
    assert not again.skipped
    assert strangers.exists()


def test_two_pictures_of_one_name_cannot_share_their_label_ids(tmp_path: Path) -> None:
    stem = "bonn_000001_000019_leftImg8bit"
    for city in ("a", "b"):
        (tmp_path / "photos" / city).mkdir(parents=True)
        Image.new("RGB", (6, 4)).save(tmp_path / "photos" / city / f"{stem}.png")
    model = load_registered(make_pulled_model(tmp_path / "model", class_table("cityscapes").names, always=CAR))
    wishes = Wishes(tmp_path / "out", label_ids="cityscapes")
    with pytest.raises(DataError, match="several pictures would have the results"):
        Predictor(model, wishes).run(find_sources([str(tmp_path / "photos")], wishes.out), lambda _: None)
