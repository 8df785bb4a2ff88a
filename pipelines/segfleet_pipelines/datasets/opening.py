"""The table of layouts: every raw dataset that can be prepared, and the function that lists its samples."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from segfleet.errors import DataError
from segfleet_pipelines.datasets.ade20k import open_ade20k
from segfleet_pipelines.datasets.base import RawDataset, check_dataset
from segfleet_pipelines.datasets.camvid import open_camvid
from segfleet_pipelines.datasets.cityscapes import open_cityscapes
from segfleet_pipelines.datasets.folder import open_folder
from segfleet_pipelines.datasets.pascal_context import open_pascal_context, open_pascal_context_59
from segfleet_pipelines.datasets.voc import open_voc

FOLDER = "folder"
LAYOUTS: dict[str, Callable[[Path], RawDataset]] = {
    "ade20k": open_ade20k,
    "camvid": open_camvid,
    "cityscapes": open_cityscapes,
    "pascal_context": open_pascal_context,
    "pascal_context_59": open_pascal_context_59,
    "voc": open_voc,
}


def open_dataset(kind: str, raw: Path, *, val_share: float, seed: int) -> RawDataset:
    """Read the lists and names of a raw dataset; no picture is opened yet.

    Args:
        kind: `folder` or one of LAYOUTS.
        raw: Folder of the raw data, or what else the layout takes.
        val_share: `folder` without split lists: share of the seeded validation split.
        seed: Of that split.

    Raises:
        DataError: unknown layout, data that do not fit it, or that may not be read.
    """
    if kind not in (FOLDER, *LAYOUTS):
        raise DataError(f"unknown dataset layout {kind!r}; use {FOLDER}, {', '.join(LAYOUTS)}")
    try:
        return check_dataset(open_folder(raw, val_share=val_share, seed=seed) if kind == FOLDER else LAYOUTS[kind](raw))
    except OSError as error:  # a folder without permission, a name too long
        raise DataError(f"{error.filename or raw} cannot be read: {error.strerror or error}") from error
