"""The values that every layout of raw data is read into."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from segfleet.errors import DataError
from segfleet.spec.sections import JOB_NAME
from segfleet_pipelines.datasets.sources import Source

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")
MASK_SUFFIXES = (".png",)
_SHOWN = 20

Color = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class RawSample:
    """A picture and its mask.

    Attributes:
        key: Unique in the dataset; without the dots that would end a key for a WebDataset reader.
        image: JPEG or PNG.
        mask: PNG, 8-bit labels.
    """

    key: str
    image: Source
    mask: Source


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
        notes: What was left out on purpose, one line each, for people.
    """

    name: str
    class_names: tuple[str, ...]
    palette: tuple[Color, ...]
    ignore_index: int
    label_map: dict[int, int] | None
    splits: dict[str, list[RawSample]]
    notes: tuple[str, ...] = ()


def pair(images: Mapping[str, Source], masks: Mapping[str, Source]) -> dict[str, RawSample]:
    """Join pictures and masks by their stems.

    Returns:
        Samples by stem, in the order of the stems.

    Raises:
        DataError: a picture without a mask, or a mask without a picture.
    """
    lonely = [f"{images[stem]}: no mask" for stem in sorted(images.keys() - masks.keys())]
    lonely += [f"{masks[stem]}: no picture" for stem in sorted(masks.keys() - images.keys())]
    if lonely:
        raise listed("pictures and masks must come in pairs of equal stems", lonely)
    return {stem: RawSample(make_key(stem), images[stem], masks[stem]) for stem in sorted(images)}


def listed_samples(stems: Iterable[str], images: Mapping[str, Source], masks: Mapping[str, Source]) -> list[RawSample]:
    """The samples that a split list names, in its order.

    Raises:
        DataError: a picture or a mask is missing.
    """
    stems = list(stems)
    missing = [
        f"{stem}: no {what}"
        for stem in stems
        for what, found in (("picture", images), ("mask", masks))
        if stem not in found
    ]
    if missing:
        raise listed("a list names what is not there", missing)
    return [RawSample(make_key(stem), images[stem], masks[stem]) for stem in stems]


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


def read_stems(path: Path) -> list[str]:
    """The stems of a split list, one a line; empty lines do not count.

    Raises:
        DataError: missing, or not UTF-8.
    """
    return [line.strip() for line in read_text(path).splitlines() if line.strip()]


def require_folder(path: Path, hint: str) -> Path:
    """The folder itself.

    Raises:
        DataError: it does not exist.
    """
    if not path.is_dir():
        raise DataError(f"{path} is not a folder; {hint}")
    return path
