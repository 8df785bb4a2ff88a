"""The table of layouts."""

from __future__ import annotations

from pathlib import Path

from segfleet.errors import DataError
from segfleet_pipelines.datasets.base import RawDataset, check_dataset
from segfleet_pipelines.datasets.camvid import open_camvid
from segfleet_pipelines.datasets.folder import open_folder


def open_dataset(kind: str, raw: Path, *, val_share: float, seed: int) -> RawDataset:
    """Read the lists and names of a raw dataset; no picture is opened yet.

    Args:
        kind: `folder` or `camvid`.
        raw: Folder of the raw data.
        val_share: `folder` without split lists: share of the seeded validation split.
        seed: Of that split.

    Raises:
        DataError: unknown layout, or data that do not fit it.
    """
    match kind:
        case "folder":
            return check_dataset(open_folder(raw, val_share=val_share, seed=seed))
        case "camvid":
            return check_dataset(open_camvid(raw))
        case _:
            raise DataError(f"unknown dataset layout {kind!r}; use folder or camvid")
