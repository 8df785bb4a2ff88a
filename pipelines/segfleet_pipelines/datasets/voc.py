"""PASCAL VOC 2012, 21 classes with background as class 0, and the extra masks of SBD for training.

Masks are palette pictures whose indices count: SegmentationClass, else SegmentationClassAug (the usual name of SBD's
masks as pictures, with the list trainaug.txt), else SBD's own cls/*.mat files. Training never sees a picture of val.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.io import loadmat

from segfleet.errors import DataError
from segfleet_pipelines.datasets.base import RawDataset, listed, listed_samples, read_stems
from segfleet_pipelines.datasets.class_table import class_table
from segfleet_pipelines.datasets.places import Place, by_stem, find_root
from segfleet_pipelines.datasets.sources import FileSource, Source
from segfleet_pipelines.picture import encode_mask

_SBD = ("benchmark_RELEASE/dataset/cls", "dataset/cls", "cls")


@dataclass(frozen=True, slots=True)
class MatSource(FileSource):
    """A class mask of SBD, a MATLAB file."""

    def read(self) -> bytes:
        """An 8-bit PNG of its labels.

        Raises:
            DataError: missing, damaged, or without a class mask.
        """
        try:
            mask = np.asarray(loadmat(self.path)["GTcls"]["Segmentation"][0, 0])
        except OSError as error:
            raise DataError(f"{self.path}: cannot be read: {error.strerror or error}") from error
        except Exception as error:  # a damaged file ends in whatever scipy's parser stumbles over
            raise DataError(f"{self.path}: not a class mask of SBD ({error})") from error
        if mask.ndim != 2 or mask.dtype != np.uint8:
            raise DataError(f"{self.path}: not a class mask of SBD, but {mask.dtype} of shape {mask.shape}")
        return encode_mask(mask, ())


def open_voc(raw: Path) -> RawDataset:
    """List the samples of VOC2012: val, and train with the extra masks of SBD if they are there.

    Args:
        raw: VOC2012, or a folder with VOCdevkit/VOC2012; SBD's benchmark_RELEASE may lie in either.

    Raises:
        DataError: no pictures or lists, a picture without a mask, or one of val in the training list.
    """
    root = find_root(raw, ("VOCdevkit/VOC2012", "VOC2012"), "JPEGImages")
    lists = root / "ImageSets" / "Segmentation"
    extra = _sbd_masks(raw, root)
    drawn = by_stem(Place(root).find("SegmentationClassAug/*.png"), ".png")
    official = by_stem(Place(root).find("SegmentationClass/*.png"), ".png")
    masks: dict[str, Source] = {**extra, **drawn, **official}
    val = read_stems(lists / "val.txt") if (lists / "val.txt").is_file() else []
    if (lists / "trainaug.txt").is_file():
        train = read_stems(lists / "trainaug.txt")
    else:
        train = read_stems(lists / "train.txt")
        if extra and not val:
            raise DataError(f"{lists / 'val.txt'} is missing: without it SBD would bring pictures of val into train")
        train += sorted(extra.keys() - {*train, *val})
    if common := sorted({*train} & {*val}):
        raise listed(f"pictures of val are in a training list of {lists}; take them out", common)
    images = by_stem(Place(root).find("JPEGImages/*.jpg"), ".jpg")
    stems = {"train": train, "val": val} if val else {"train": train}
    splits = {split: listed_samples(names, images, masks) for split, names in stems.items()}
    return class_table("voc").dataset("voc", splits)


def _sbd_masks(raw: Path, root: Path) -> dict[str, Source]:
    for folder in (base / name for base in (raw, root) for name in _SBD):
        if folder.is_dir():
            return {path.stem: MatSource(path) for path in sorted(folder.glob("*.mat"))}
    return {}
