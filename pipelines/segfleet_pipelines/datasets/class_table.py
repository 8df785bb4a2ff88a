"""Class tables: names, colours, ignored label and label map of a dataset, as a YAML file.

names: [sky, road]          one per class, in label order
colors: [[0, 0, 255], ...]  optional, RGB
ignore_index: 255           optional
label_map: {7: 0, 8: 255}   optional: raw label -> class or ignore index; a raw label that is not in it is an error

The tables of known datasets lie beside this file in classes/; a `folder` dataset brings its own classes.yaml.
"""

from __future__ import annotations

import colorsys
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from segfleet.errors import DataError, SpecError
from segfleet.spec.document import parse_document
from segfleet_pipelines.datasets.base import Color, RawDataset, RawSample, read_text

_Byte = Annotated[int, Field(ge=0, le=255)]
_ClassName = Annotated[str, Field(min_length=1, max_length=80)]
_FOLDER = Path(__file__).parent / "classes"


class ClassFile(BaseModel):
    """A class table. Two classes may share a colour (ADE20K's road and skyscraper do), but no name."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    names: Annotated[list[_ClassName], Field(min_length=1, max_length=255)]
    colors: list[Annotated[list[_Byte], Field(min_length=3, max_length=3)]] | None = None
    ignore_index: _Byte = 255
    label_map: dict[str, _Byte] | None = None

    @property
    def palette(self) -> tuple[Color, ...]:
        """K colours: those of the file, or our own."""
        return tuple((r, g, b) for r, g, b in self.colors) if self.colors else own_palette(len(self.names))

    @property
    def labels(self) -> dict[int, int] | None:
        """The label map by number."""
        return {int(key): label for key, label in self.label_map.items()} if self.label_map else None

    def dataset(self, name: str, splits: dict[str, list[RawSample]], notes: tuple[str, ...] = ()) -> RawDataset:
        """The raw dataset of these classes and samples."""
        return RawDataset(name, tuple(self.names), self.palette, self.ignore_index, self.labels, splits, notes)

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


def known_tables() -> tuple[str, ...]:
    """Names of the datasets whose tables are here."""
    return tuple(sorted(path.stem for path in _FOLDER.glob("*.yaml")))


def class_table(name: str) -> ClassFile:
    """The table of a known dataset: classes/NAME.yaml.

    Raises:
        DataError: missing or wrong.
    """
    return read_classes(_FOLDER / f"{name}.yaml")


def read_classes(path: Path) -> ClassFile:
    """Read and check a class table.

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


def own_palette(num_classes: int) -> tuple[Color, ...]:
    """Colours that differ well: hues by the golden ratio, three brightnesses in turn."""
    colors = []
    for i in range(num_classes):
        r, g, b = colorsys.hsv_to_rgb(i * 0.618034 % 1, (0.85, 0.6, 0.95)[i % 3], (0.95, 0.8, 0.6)[i % 3])
        colors.append((round(r * 255), round(g * 255), round(b * 255)))
    return tuple(colors)
