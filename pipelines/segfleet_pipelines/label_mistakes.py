"""Name the mistake behind raw masks that do not fit their class table.

Called when samples have failed: a few masks are read again, and what they hold is compared with the patterns of the
usual mistakes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from segfleet.errors import DataError
from segfleet_pipelines.datasets.base import Color, RawDataset, RawSample, listed
from segfleet_pipelines.datasets.class_table import class_table
from segfleet_pipelines.labels import percent, ranges
from segfleet_pipelines.picture import MASK_MODES, decode_image, decode_mask, read_header

_LOOKED_AT = 24
_COLORS_SHOWN = 8
_COLOR_MODES = ("RGB", "RGBA")
_USUAL_IGNORED = 255


@dataclass(frozen=True, slots=True)
class RawLabels:
    """What some raw masks hold.

    Attributes:
        values: Pixels by label, of 8-bit index and grey pictures.
        colors: Pixels by colour, of colour pictures.
        modes: Masks by format and pixel layout, such as `PNG RGB`.
    """

    values: Counter[int]
    colors: Counter[Color]
    modes: Counter[str]


def explain(dataset: RawDataset) -> list[str]:
    """The likely mistakes in a dataset's masks or class table, for people; none if nothing known fits."""
    samples = [sample for split in dataset.splits.values() for sample in split]
    found = look_at(samples[:: max(1, len(samples) // _LOOKED_AT)])
    lines = [*explain_modes(found.modes), *explain_colors(found.colors, dataset.class_names, dataset.palette)]
    if line := explain_values(set(found.values), len(dataset.class_names), dataset.ignore_index, dataset.label_map):
        lines.append(line)
    return lines


def refusal(dataset: RawDataset, bad: Sequence[str]) -> DataError:
    """The error for samples that cannot be used, with the mistake behind them where it is a known one."""
    error = listed("samples cannot be used; mend or remove them", bad)
    advice = "".join(f"\nprobably: {line}" for line in explain(dataset))
    return DataError(f"{error}{advice}")


def look_at(samples: Sequence[RawSample]) -> RawLabels:
    """Count what the masks of some samples hold; those that cannot be read are passed over."""
    found = RawLabels(Counter(), Counter(), Counter())
    for sample in samples:
        try:
            data = sample.mask.read()
            header = read_header(data)
            found.modes[f"{header.format} {header.mode}"] += 1
            if header.mode in _COLOR_MODES:
                packed, counts = np.unique(decode_image(data) @ np.array([1 << 16, 1 << 8, 1]), return_counts=True)
                found.colors.update(dict(zip(map(_color, packed.tolist()), counts.tolist(), strict=True)))
            elif header.mode in MASK_MODES:
                values, counts = np.unique(decode_mask(data), return_counts=True)
                found.values.update(dict(zip(values.tolist(), counts.tolist(), strict=True)))
        except DataError:
            continue
    return found


def explain_modes(modes: Counter[str]) -> list[str]:
    """Masks that are no 8-bit PNG, for reasons other than colour."""
    lines = []
    if any(mode.startswith("JPEG") for mode in modes):
        lines.append("masks are JPEG, which blurs labels into others; make them again as 8-bit PNG")
    if odd := sorted(mode for mode in modes if mode.split()[1] not in (*MASK_MODES, *_COLOR_MODES)):
        lines.append(f"masks are {', '.join(odd)}; save them as PNG with one 8-bit label a pixel")
    return lines


def explain_colors(colors: Counter[Color], class_names: Sequence[str], palette: Sequence[Color]) -> list[str]:
    """Colour masks: which colours they hold, and whether these are the colours of the class table."""
    if not colors:
        return []
    total = colors.total()
    names: dict[Color, str] = {}
    for name, color in zip(class_names, palette, strict=True):
        # Classes may share a colour.
        names[color] = f"{names[color]} / {name}" if color in names else name
    shown = [
        f"{color} {percent(count / total)}" + (f" = {names[color]}" if color in names else "")
        for color, count in colors.most_common(_COLORS_SHOWN)
    ]
    more = f" and {len(colors) - _COLORS_SHOWN} more" if len(colors) > _COLORS_SHOWN else ""
    known = sum(count for color, count in colors.items() if color in names) / total
    hint = (
        "these are the colours of the class table"
        if known > 0.5
        else "few of them are colours of the class table; give each class its colour"
    )
    return [
        f"masks are colour pictures (RGB) with {len(colors)} colours: {', '.join(shown)}{more}; "
        f"{hint}. A mask holds one label a pixel: turn each colour into its label and save an 8-bit palette (P) or "
        "grey (L) PNG"
    ]


def explain_values(present: set[int], num_classes: int, ignore_index: int, label_map: dict[int, int] | None) -> str:
    """The mistake that foreign labels look like; empty if no label is foreign.

    Args:
        present: Raw labels in the masks.
        num_classes: K.
        ignore_index: Of the class table.
        label_map: Of the class table; None: labels 0..K-1 and the ignore index are right.
    """
    right = set(label_map) if label_map is not None else {*range(num_classes), ignore_index}
    if not present - right:
        return ""
    seen = f"the masks hold labels {ranges(sorted(present))}"
    if label_map is not None:
        return f"{seen}; {_against_map(present, label_map)}"
    return f"{seen}; {_against_classes(present, num_classes, ignore_index)}"


def _against_map(present: set[int], label_map: dict[int, int]) -> str:
    cityscapes = class_table("cityscapes").labels or {}
    if cityscapes.items() <= label_map.items() and present - {_USUAL_IGNORED} <= set(range(19)):
        return "these are Cityscapes train ids (0-18, 255), but label_map expects label ids (0-33): leave it out"
    missing = sorted(present - set(label_map))
    if missing == [0]:
        return "label_map says nothing of 0; if 0 is the background or 'other', add 0: 255 to ignore it"
    if missing == [_USUAL_IGNORED]:
        return "label_map says nothing of 255; if 255 marks ignored pixels, add 255: 255"
    return f"label_map says nothing of {ranges(missing)}; add each of them, with a class or with the ignore index"


def _against_classes(present: set[int], num_classes: int, ignore_index: int) -> str:
    labels = present - {_USUAL_IGNORED, ignore_index}
    top = max(labels, default=0)
    if present == {0, _USUAL_IGNORED} and num_classes == 2:
        return "0 and 255 stand for the two classes: label_map {0: 0, 255: 1}"
    if not labels - set(range(num_classes)):
        return f"255 usually marks ignored pixels, but the ignore index is {ignore_index}: set ignore_index to 255"
    if num_classes == len(class_table("cityscapes").names) and labels <= set(range(34)) and top > num_classes:
        return (
            "these are Cityscapes label ids (0-33) where 19 train ids are expected: use dataset cityscapes, or the "
            "label_map of its class table"
        )
    if top == num_classes and 0 not in labels:
        return (
            f"they count from 1, off by one for the classes 0-{num_classes - 1}: "
            "add label_map {1: 0, 2: 1, ...}, with 255: 255 if there are ignored pixels"
        )
    if top == num_classes:
        return (
            f"that is one more than the {num_classes} classes. If 0 is the background or 'other' and no class (a "
            "reduced zero label, as in ADE20K), ignore it, shift the rest: label_map {0: 255, 1: 0, 2: 1, ...}. If 0 "
            f"is a background class, name it first. If {top} means void, map it to 255"
        )
    if len(labels) <= num_classes:
        mapping = ", ".join(f"{raw}: {label}" for label, raw in enumerate(sorted(labels)))
        return f"{len(labels)} grey values stand for {num_classes} classes: if in this order, label_map {{{mapping}}}"
    return (
        f"{num_classes} classes have labels 0-{num_classes - 1}; name the missing classes or map labels with label_map"
    )


def _color(packed: int) -> Color:
    return packed >> 16, packed >> 8 & 255, packed & 255
