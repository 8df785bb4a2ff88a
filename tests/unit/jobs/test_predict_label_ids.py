from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from segfleet.errors import DataError
from segfleet_jobs.predict import predict_files
from segfleet_pipelines.datasets.class_table import class_table


class FakeModel:
    """Says train id 13 (car) everywhere."""

    def __init__(self, names: list[str]) -> None:
        self._names = names

    def unwrap_python_model(self) -> SimpleNamespace:
        return SimpleNamespace(class_names=tuple(self._names), palette=((0, 0, 0),) * len(self._names))

    def predict(self, pictures: np.ndarray) -> np.ndarray:
        return np.full(pictures.shape[:3], 13)


def picture(folder: Path, stem: str) -> Path:
    Image.new("RGB", (6, 4)).save(folder / f"{stem}.png")
    return folder / f"{stem}.png"


def test_label_ids_are_written_besides_in_a_folder_of_their_own(tmp_path: Path) -> None:
    image = picture(tmp_path, "bonn_000001_000019_leftImg8bit")
    model = FakeModel(class_table("cityscapes").names)
    (entry,) = predict_files(model, [image], tmp_path / "out", "cityscapes")
    assert entry["shares"] == {"car": 1.0}
    written = Path(entry["label_ids"])
    assert written == tmp_path / "out" / "labelIds" / "bonn_000001_000019_pred_labelIds.png"
    assert list(written.parent.iterdir()) == [written]
    assert (np.array(Image.open(written)) == 26).all()
    assert (np.array(Image.open(entry["mask"])) == 13).all()
    (plain,) = predict_files(model, [image], tmp_path / "plain")
    assert "label_ids" not in plain
    assert not (tmp_path / "plain" / "labelIds").exists()


def test_a_model_of_other_classes_has_no_label_ids(tmp_path: Path) -> None:
    image = picture(tmp_path, "bonn_000001_000019_leftImg8bit")
    with pytest.raises(DataError, match="classes are not those of cityscapes"):
        predict_files(FakeModel(["a"] * 19), [image], tmp_path / "out", "cityscapes")
    with pytest.raises(DataError, match="not named like a Cityscapes picture"):
        predict_files(
            FakeModel(class_table("cityscapes").names), [picture(tmp_path, "x")], tmp_path / "out", "cityscapes"
        )


def test_no_result_overwrites_a_picture(tmp_path: Path) -> None:
    image = picture(tmp_path, "street")
    before = image.read_bytes()
    (tmp_path / "link").symlink_to(tmp_path)
    for out in (tmp_path, tmp_path / "link"):
        with pytest.raises(DataError, match=r"overwrite the pictures themselves: .*street\.png; choose another --out"):
            predict_files(FakeModel(class_table("cityscapes").names), [image], out)
    assert image.read_bytes() == before


@pytest.mark.parametrize("other", ["a/street", "street-overlay"])
def test_no_result_overwrites_another(tmp_path: Path, other: str) -> None:
    (tmp_path / "a").mkdir()
    images = [picture(tmp_path, "street"), picture(tmp_path, other)]
    with pytest.raises(DataError, match=r"several pictures would have the results .*street-overlay\.png"):
        predict_files(FakeModel(class_table("cityscapes").names), images, tmp_path / "out")
    assert not (tmp_path / "out").exists()
