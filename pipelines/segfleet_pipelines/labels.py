"""The label check of prepared data: what a split's masks hold, in numbers a person understands.

Everything is computed from the index (pixels of each class and size of each picture); no mask is read.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from segfleet_pipelines.datasets.class_table import class_table
from segfleet_pipelines.reader import SampleIndex

_SHOWN = 10
_MUCH = 0.5  # share of ignored pixels that needs a word
_VOID_NAMES = frozenset({"void", "ignore", "ignored", "unlabeled", "unlabelled", "unknown"})
# Train ids 0..18 read as Cityscapes label ids: 7, 8, 11, 12, 13 and 17 become these, all others are ignored.
_TRAIN_IDS_TWICE = range(6)


@dataclass(frozen=True, slots=True)
class LabelReport:
    """What the masks of one split hold.

    Attributes:
        split: Its name.
        num_pictures: Pictures.
        seen: Labels of the classes that occur, ascending.
        never_seen: Names of the classes that do not, in label order.
        ignored_share: Share of all pixels, 0..1.
        empty: Keys of the pictures that have no labelled pixel, in order.
    """

    split: str
    num_pictures: int
    seen: tuple[int, ...]
    never_seen: tuple[str, ...]
    ignored_share: float
    empty: tuple[str, ...]


def report_labels(
    split: str,
    class_names: Sequence[str],
    keys: Sequence[str],
    class_pixels: npt.NDArray[np.int64],
    sizes: npt.NDArray[np.int32],
) -> LabelReport:
    """Count what the masks of a split hold.

    Args:
        split: Its name.
        class_names: K names.
        keys: N keys.
        class_pixels: Pixels of each class in each picture, (N, K).
        sizes: Height and width of each picture, (N, 2).
    """
    totals = class_pixels.sum(axis=0)
    num_pixels = int(sizes.astype(np.int64).prod(axis=1).sum())
    return LabelReport(
        split=split,
        num_pictures=len(keys),
        seen=tuple(np.flatnonzero(totals).tolist()),
        never_seen=tuple(name for name, total in zip(class_names, totals, strict=True) if not total),
        ignored_share=max(0.0, 1.0 - float(totals.sum()) / num_pixels),
        empty=tuple(keys[i] for i in np.flatnonzero(class_pixels.sum(axis=1) == 0).tolist()),
    )


def label_report(index: SampleIndex) -> LabelReport:
    """The report of a prepared split."""
    return report_labels(index.split, index.manifest.class_names, index.keys, index.class_pixels, index.sizes)


def label_warnings(index: SampleIndex) -> list[str]:
    """What a person should look at before training on a prepared split; one sentence each, none if all is well."""
    return find_doubts(label_report(index), index.manifest.class_names)


def describe(report: LabelReport, ignore_index: int) -> str:
    """One line for people: labels seen, classes never seen, share ignored, pictures with nothing valid."""
    never, empty = len(report.never_seen), len(report.empty)
    return (
        f"{report.split}: {len(report.seen)} of {len(report.seen) + never} classes seen "
        f"(labels {ranges(report.seen) or 'none'}), {never} never; {percent(report.ignored_share)} of the pixels "
        f"ignored ({ignore_index}); {empty} of {report.num_pictures} pictures with nothing valid"
    )


def find_doubts(report: LabelReport, class_names: Sequence[str]) -> list[str]:
    """Warnings that follow from a report; the likely mistake in the label mapping is named where there is one."""
    split, seen, count = report.split, report.seen, len(class_names)
    if not seen:
        return [f"{split}: every pixel is ignored; look at label_map and ignore_index"]
    found = []
    if mistake := _mapping_doubt(report, class_names):
        found.append(f"{split}: {mistake}")
    elif report.never_seen:
        found.append(f"{split}: {len(report.never_seen)} of {count} classes never occur: {some(report.never_seen)}")
    if report.ignored_share > _MUCH:
        found.append(f"{split}: {percent(report.ignored_share)} of the pixels are ignored; look at the label map")
    if report.empty:
        found.append(f"{split}: {len(report.empty)} pictures have no labelled pixel: {some(report.empty)}")
    found += [
        f"{split}: class {class_names[label]!r} is trained and scored like any other; "
        "if it stands for pixels without a label, move it to the ignore index with label_map"
        for label in seen
        if class_names[label].lower() in _VOID_NAMES
    ]
    return found


def some(names: Iterable[str]) -> str:
    """The first ten, and how many more there are."""
    items = list(names)
    more = f" and {len(items) - _SHOWN} more" if len(items) > _SHOWN else ""
    return ", ".join(items[:_SHOWN]) + more


def percent(share: float) -> str:
    """A share for people; a little is never shown as nothing."""
    return "less than 0.1 %" if 0 < share < 0.001 else f"{100 * share:.1f} %"


def ranges(labels: Iterable[int]) -> str:
    """[0, 1, 2, 255] -> '0-2, 255'."""
    spans: list[list[int]] = []
    for label in labels:
        if spans and label == spans[-1][1] + 1:
            spans[-1][1] = label
        else:
            spans.append([label, label])
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in spans)


def _mapping_doubt(report: LabelReport, class_names: Sequence[str]) -> str:
    """The mistake that the seen labels look like; empty if they look like none."""
    seen, count = set(report.seen), len(class_names)
    if count > 1 and seen == {0} and report.ignored_share > 0:
        return (
            f"only class {class_names[0]!r} occurs, all else is ignored; if the masks hold 0 and 255 and 255 is the "
            "object, it is taken for the ignored label: write label_map {0: 0, 255: 1}"
        )
    if tuple(class_names) == tuple(class_table("cityscapes").names) and seen <= set(_TRAIN_IDS_TWICE):
        return "only train ids 0-5 occur: the masks seem to hold train ids already, which were read as label ids"
    if count > 2 and seen == {*range(1, count)}:
        return (
            f"all classes but {class_names[0]!r} (label 0) occur; either the masks count from 1 (off by one), or label "
            "0, the background, was ignored: look at label_map"
        )
    if count > 2 and seen == {*range(count - 1)}:
        return (
            f"all classes but the last, {class_names[-1]!r} (label {count - 1}), occur; if it should, the labels may "
            "have been shifted by one twice (a reduced zero label): look at label_map"
        )
    return ""
