"""A team's own data: images/ and masks/ with equal stems, and a classes.yaml.

classes.yaml          names: [sky, road]          one per class, in label order
                      colors: [[0, 0, 255], ...]  optional, RGB
                      ignore_index: 255           optional
                      label_map: {7: 0, 8: 255}   optional: raw label -> class or ignore index
splits/train.txt      optional, with splits/val.txt (and more): one stem a line; else a seeded split
"""

from __future__ import annotations

import colorsys
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from segfleet.errors import DataError, SpecError
from segfleet.spec.document import parse_document
from segfleet_pipelines.datasets.base import (
    IMAGE_SUFFIXES,
    MASK_SUFFIXES,
    Color,
    RawDataset,
    RawSample,
    listed,
    make_key,
    read_text,
    require_folder,
)

_Byte = Annotated[int, Field(ge=0, le=255)]
_ClassName = Annotated[str, Field(min_length=1, max_length=80)]


class ClassFile(BaseModel):
    """classes.yaml."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    names: Annotated[list[_ClassName], Field(min_length=1, max_length=255)]
    colors: list[Annotated[list[_Byte], Field(min_length=3, max_length=3)]] | None = None
    ignore_index: _Byte = 255
    label_map: dict[str, _Byte] | None = None

    def problem(self) -> str:
        """What no single field can see; empty if all is well."""
        count = len(self.names)
        if len(set(self.names)) < count:
            return "names: a class is listed twice"
        if self.colors is not None and len(self.colors) != count:
            return f"colors: {len(self.colors)} colours for {count} classes"
        if self.ignore_index < count:
            return (
                f"ignore_index: {self.ignore_index} is also the label of class {self.names[self.ignore_index]!r}; "
                "use 255 and move the raw label there with label_map"
            )
        for raw, label in (self.label_map or {}).items():
            if not raw.isdecimal() or int(raw) > 255:
                return f"label_map: {raw!r} is not a label from 0 to 255"
            if label >= count and label != self.ignore_index:
                return f"label_map: {raw} -> {label} is neither a class nor the ignore index {self.ignore_index}"
        return ""


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
    return RawDataset(
        name=raw.resolve().name,
        class_names=tuple(classes.names),
        palette=tuple((r, g, b) for r, g, b in classes.colors) if classes.colors else own_palette(len(classes.names)),
        ignore_index=classes.ignore_index,
        label_map={int(key): label for key, label in classes.label_map.items()} if classes.label_map else None,
        splits=splits,
    )


def read_classes(path: Path) -> ClassFile:
    """Read and check a classes.yaml.

    Raises:
        DataError: missing, not readable, or wrong; names the field.
    """
    try:
        document: dict[str, Any] = parse_document(read_text(path), str(path))
        classes = ClassFile.model_validate(document)
    except SpecError as error:
        raise DataError(str(error)) from error
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        raise DataError(f"{path}: {place}: {first['msg']}") from error
    if wrong := classes.problem():
        raise DataError(f"{path}: {wrong}")
    return classes


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


def own_palette(num_classes: int) -> tuple[Color, ...]:
    """Colours that differ well: hues by the golden ratio, three brightnesses in turn."""
    colors = []
    for i in range(num_classes):
        r, g, b = colorsys.hsv_to_rgb(i * 0.618034 % 1, (0.85, 0.6, 0.95)[i % 3], (0.95, 0.8, 0.6)[i % 3])
        colors.append((round(r * 255), round(g * 255), round(b * 255)))
    return tuple(colors)


def _pair(raw: Path) -> dict[str, RawSample]:
    """Samples by stem, in the order of their stems."""
    images = _by_stem(require_folder(raw / "images", "put the pictures there"), IMAGE_SUFFIXES)
    masks = _by_stem(require_folder(raw / "masks", "put the masks there"), MASK_SUFFIXES)
    lonely = [f"{images[stem]}: no mask" for stem in sorted(images.keys() - masks.keys())]
    lonely += [f"{masks[stem]}: no picture" for stem in sorted(masks.keys() - images.keys())]
    if lonely:
        raise listed("pictures and masks must come in pairs of equal stems", lonely)
    if not images:
        raise DataError(f"{raw / 'images'} holds no {', '.join(IMAGE_SUFFIXES)}; put the pictures there")
    return {stem: RawSample(make_key(stem), images[stem], masks[stem]) for stem in sorted(images)}


def _by_stem(folder: Path, suffixes: tuple[str, ...]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    wrong = []
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        if path.suffix.lower() not in suffixes or not path.is_file():
            wrong.append(f"{path}: not a {' or '.join(suffixes)} file")
        elif path.stem in found:
            wrong.append(f"{path}: same stem as {found[path.stem].name}")
        found[path.stem] = path
    if wrong:
        raise listed(f"{folder} holds what cannot be used; take it out", wrong)
    return found


def _listed_splits(lists: list[Path], samples: dict[str, RawSample]) -> dict[str, list[RawSample]]:
    splits, unknown = {}, []
    for path in lists:
        stems = [line.strip() for line in read_text(path).splitlines() if line.strip()]
        unknown += [f"{path}: {stem}" for stem in stems if stem not in samples]
        splits[path.stem] = [samples[stem] for stem in stems if stem in samples]
    if unknown:
        raise listed("split lists name stems without picture and mask", unknown)
    return splits
