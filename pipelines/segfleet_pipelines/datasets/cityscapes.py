"""Cityscapes: leftImg8bit and gtFine (and gtCoarse), as folders or as the zip files in which they are distributed.

Masks are the labelIds pictures, because the train ids are not distributed; the class table maps them. A license plate
(id -1) never occurs: the official drawing code leaves it out, and the car below it shows.
"""

from __future__ import annotations

import io
import re
from pathlib import Path

import numpy as np
from PIL import Image

from segfleet.errors import DataError
from segfleet_pipelines.datasets.base import RawDataset, RawSample, pair, require_folder
from segfleet_pipelines.datasets.class_table import class_table
from segfleet_pipelines.datasets.places import Place, by_stem, find
from segfleet_pipelines.picture import Pixels

IMAGE_ENDING = "_leftImg8bit.png"
# The fine masks of the test split are empty stand-ins; the true ones are kept by the benchmark's server.
_SPLITS = {"train": "gtFine", "val": "gtFine", "train_extra": "gtCoarse"}
_CORE_NAME = re.compile(r"[A-Za-z-]+_[0-9]{6}_[0-9]{6}(?=_|$)")


def open_cityscapes(raw: Path) -> RawDataset:
    """List the samples of Cityscapes: train, val, and train_extra with its coarse masks if there.

    Args:
        raw: Folder with leftImg8bit/ and gtFine/, or with leftImg8bit_*.zip and gtFine_*.zip, or a mixture.

    Raises:
        DataError: no training pictures, or pictures and masks do not pair.
    """
    require_folder(raw, "give the folder that holds leftImg8bit and gtFine, unpacked or as zip files")
    archives = sorted(path for start in ("leftImg8bit", "gtFine", "gtCoarse") for path in raw.glob(f"{start}*.zip"))
    places = [Place(raw), *map(Place, archives)]
    splits: dict[str, list[RawSample]] = {}
    notes = []
    for split, kind in _SPLITS.items():
        images = by_stem(find(places, f"leftImg8bit/{split}/*/*{IMAGE_ENDING}"), IMAGE_ENDING)
        masks = by_stem(find(places, f"{kind}/{split}/*/*_{kind}_labelIds.png"), f"_{kind}_labelIds.png")
        if images and not masks:
            notes.append(f"split {split} is left out: it has pictures, but no {kind} masks")
        elif samples := list(pair(images, masks).values()):
            splits[split] = samples
    if "train" not in splits:
        raise DataError(
            f"{raw} holds no leftImg8bit/train/CITY/*{IMAGE_ENDING} with gtFine masks, unpacked or as zip files; "
            "get leftImg8bit_trainvaltest.zip and gtFine_trainvaltest.zip from cityscapes-dataset.com"
        )
    if find(places, f"leftImg8bit/test/*/*{IMAGE_ENDING}"):
        notes.append("split test is left out: its labels are not public")
    return class_table("cityscapes").dataset("cityscapes", splits, tuple(notes))


def to_label_ids(labels: Pixels) -> Pixels:
    """Turn train ids into the label ids that the official evaluator and server expect.

    Args:
        labels: Train ids 0..18, (H, W).

    Returns:
        Label ids 7..33, (H, W).

    Raises:
        DataError: a label is not a train id.
    """
    classes = class_table("cityscapes")
    ids = {label: raw for raw, label in (classes.labels or {}).items() if label != classes.ignore_index}
    if not (known := np.isin(labels, list(ids))).all():
        raise DataError(f"label {int(labels[~known][0])} is not a Cityscapes train id (0 to {max(ids)})")
    table = np.zeros(256, np.uint8)
    table[list(ids)] = list(ids.values())
    converted: Pixels = table[labels]
    return converted


def export_prediction(labels: Pixels, stem: str) -> tuple[str, bytes]:
    """Official file of a prediction: its name and an 8-bit grey PNG of label ids.

    The evaluator and the server take any name that begins with CITY_SEQUENCE_FRAME and ends with .png, but only one
    for each picture in the whole folder.

    Args:
        labels: Train ids 0..18, (H, W).
        stem: Of the picture's file, CITY_SEQUENCE_FRAME_leftImg8bit.

    Raises:
        DataError: not such a stem, or a label is not a train id.
    """
    core = _CORE_NAME.match(stem)
    if core is None:
        raise DataError(f"{stem!r} is not named like a Cityscapes picture, CITY_000000_000000_leftImg8bit; rename it")
    buffer = io.BytesIO()
    Image.fromarray(to_label_ids(labels)).save(buffer, format="PNG")
    return f"{core.group()}_pred_labelIds.png", buffer.getvalue()
