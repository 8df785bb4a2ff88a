"""ADE20K as SceneParse150 (ADEChallengeData2016): 150 classes, raw label 0 ("other") ignored.

images/{training,validation}/NAME.jpg and annotations/{training,validation}/NAME.png, unpacked or in the zip file as
it is distributed.
"""

from __future__ import annotations

from pathlib import Path

from segfleet.errors import DataError
from segfleet_pipelines.datasets.base import RawDataset, pair
from segfleet_pipelines.datasets.class_table import class_table
from segfleet_pipelines.datasets.places import Place, by_stem

TOP = "ADEChallengeData2016"
SPLITS = {"train": "training", "val": "validation"}


def open_ade20k(raw: Path) -> RawDataset:
    """List the samples of ADE20K.

    Args:
        raw: ADEChallengeData2016, its zip file, or the folder that holds one of the two.

    Raises:
        DataError: neither is there, or pictures and masks do not pair.
    """
    place = _place(raw)
    splits = {}
    for split, folder in SPLITS.items():
        images = by_stem(place.find(f"images/{folder}/*.jpg"), ".jpg")
        masks = by_stem(place.find(f"annotations/{folder}/*.png"), ".png")
        if samples := list(pair(images, masks).values()):
            splits[split] = samples
    if "train" not in splits:
        raise DataError(f"{place.path} holds no {place.inside}images/training/*.jpg; is it {TOP}?")
    return class_table("ade20k").dataset("ade20k", splits)


def _place(raw: Path) -> Place:
    for folder in (raw, raw / TOP):
        if (folder / "images").is_dir():
            return Place(folder)
    for archive in (raw, raw / f"{TOP}.zip"):
        if archive.is_file():
            return Place(archive, f"{TOP}/")
    raise DataError(f"{raw} holds neither {TOP} nor {TOP}.zip; give the folder or the zip file")
