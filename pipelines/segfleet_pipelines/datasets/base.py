"""The values that every layout of raw data is read into."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from segfleet.errors import DataError
from segfleet.spec.sections import JOB_NAME

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")
MASK_SUFFIXES = (".png",)
_SHOWN = 20

Color = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class RawSample:
    """A picture and its mask on disk.

    Attributes:
        key: Unique in the dataset; without the dots that would end a key for a WebDataset reader.
        image: JPEG or PNG.
        mask: PNG, 8-bit labels.
    """

    key: str
    image: Path
    mask: Path


@dataclass(frozen=True, slots=True)
class RawDataset:
    """A dataset before it is prepared.

    Attributes:
        name: For people.
        class_names: K names.
        palette: K colours, RGB 0..255.
        ignore_index: Label of ignored pixels after mapping; no class has it.
        label_map: Label in the raw masks -> class or ignore index; None: the raw labels are final.
        splits: Samples by the name of their split, none empty.
    """

    name: str
    class_names: tuple[str, ...]
    palette: tuple[Color, ...]
    ignore_index: int
    label_map: dict[int, int] | None
    splits: dict[str, list[RawSample]]


def make_key(stem: str) -> str:
    """A sample's key from the stem of its file."""
    return "".join(char if char.isalnum() or char in "_-" else "_" for char in stem)


def listed(what: str, items: Iterable[str]) -> DataError:
    """One error that names the first twenty of the items and how many there are."""
    found = list(items)
    lines = [f"{what} ({len(found)}):", *(f"  - {item}" for item in found[:_SHOWN])]
    if len(found) > _SHOWN:
        lines.append(f"  ... and {len(found) - _SHOWN} more")
    return DataError("\n".join(lines))


def check_dataset(dataset: RawDataset) -> RawDataset:
    """The dataset itself, if it can be prepared.

    Raises:
        DataError: an empty split, a split of a name that no spec could give, or two samples of one key.
    """
    for name, samples in dataset.splits.items():
        if not JOB_NAME.fullmatch(name):
            raise DataError(f"dataset {dataset.name!r}: {name!r} cannot name a split; use a-z, 0-9, '.', '_' and '-'")
        if not samples:
            raise DataError(f"dataset {dataset.name!r}: split {name!r} is empty; add samples to it")
    places: dict[str, list[str]] = {}
    for name, samples in dataset.splits.items():
        for sample in samples:
            places.setdefault(sample.key, []).append(f"{sample.image} in {name}")
    if doubles := [f"{key}: {' and '.join(found)}" for key, found in places.items() if len(found) > 1]:
        raise listed("samples must have different keys and be in one split once; rename or unlist", doubles)
    return dataset


def read_text(path: Path) -> str:
    """The text of a list or of a class file.

    Raises:
        DataError: missing, or not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise DataError(f"{path} is missing") from error
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error


def require_folder(path: Path, hint: str) -> Path:
    """The folder itself.

    Raises:
        DataError: it does not exist.
    """
    if not path.is_dir():
        raise DataError(f"{path} is not a folder; {hint}")
    return path
