"""A team's own data: images/ and masks/ with equal stems, and a classes.yaml (see `class_table`).

splits/train.txt      optional, with splits/val.txt (and more): one stem a line; else a seeded split
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from segfleet.errors import DataError
from segfleet_pipelines.datasets.base import (
    IMAGE_SUFFIXES,
    MASK_SUFFIXES,
    RawDataset,
    RawSample,
    listed,
    pair,
    read_stems,
    require_folder,
)
from segfleet_pipelines.datasets.class_table import read_classes
from segfleet_pipelines.datasets.sources import FileSource


def open_folder(raw: Path, *, val_share: float, seed: int) -> RawDataset:
    """Read a folder of pictures and masks.

    Args:
        raw: Holds images/, masks/ and classes.yaml.
        val_share: Without split lists: the share of samples in `val`; 0 makes no `val`.
        seed: Of that split.

    Raises:
        DataError: missing parts, pictures without masks or masks without pictures, or a wrong classes.yaml.
    """
    require_folder(raw, "give the folder that holds images/, masks/ and classes.yaml")
    classes = read_classes(raw / "classes.yaml")
    samples = _pair(raw)
    lists = sorted((raw / "splits").glob("*.txt"))
    splits = _listed_splits(lists, samples) if lists else seeded_split(list(samples.values()), val_share, seed)
    return classes.dataset(raw.resolve().name, splits)


def seeded_split(samples: list[RawSample], val_share: float, seed: int) -> dict[str, list[RawSample]]:
    """Shuffle the samples into `train` and `val`; both keep at least one sample.

    Raises:
        DataError: too few samples for two splits, or none left to train on.
    """
    if val_share == 0:
        return {"train": samples}
    if len(samples) < 2 or val_share >= 1:
        raise DataError(f"{len(samples)} samples cannot be split with a val share of {val_share:g}; add split lists")
    num_val = min(max(1, round(len(samples) * val_share)), len(samples) - 1)
    order = np.argsort(np.random.PCG64(seed).random_raw(len(samples)), kind="stable")
    chosen = set(order[:num_val].tolist())
    return {
        "train": [sample for i, sample in enumerate(samples) if i not in chosen],
        "val": [sample for i, sample in enumerate(samples) if i in chosen],
    }


def _pair(raw: Path) -> dict[str, RawSample]:
    """Samples by stem, in the order of their stems."""
    images = _by_stem(require_folder(raw / "images", "put the pictures there"), IMAGE_SUFFIXES)
    masks = _by_stem(require_folder(raw / "masks", "put the masks there"), MASK_SUFFIXES)
    samples = pair(images, masks)
    if not samples:
        raise DataError(f"{raw / 'images'} holds no {', '.join(IMAGE_SUFFIXES)}; put the pictures there")
    return samples


def _by_stem(folder: Path, suffixes: tuple[str, ...]) -> dict[str, FileSource]:
    found: dict[str, FileSource] = {}
    wrong = []
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        if path.suffix.lower() not in suffixes or not path.is_file():
            wrong.append(f"{path}: not a {' or '.join(suffixes)} file")
        elif path.stem in found:
            wrong.append(f"{path}: same stem as {found[path.stem].path.name}")
        found[path.stem] = FileSource(path)
    if wrong:
        raise listed(f"{folder} holds what cannot be used; take it out", wrong)
    return found


def _listed_splits(lists: list[Path], samples: dict[str, RawSample]) -> dict[str, list[RawSample]]:
    splits, unknown = {}, []
    for path in lists:
        stems = read_stems(path)
        unknown += [f"{path}: {stem}" for stem in stems if stem not in samples]
        splits[path.stem] = [samples[stem] for stem in stems if stem in samples]
    if unknown:
        raise listed("split lists name stems without picture and mask", unknown)
    return splits
