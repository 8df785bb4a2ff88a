"""The datasets that one training draws from: opened, and found to fit together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from segfleet.errors import DataError
from segfleet.spec.sections import MixSpec
from segfleet_pipelines.manifest import Manifest
from segfleet_pipelines.reader import SampleIndex

_SHOWN = 5


def open_datasets(sources: Sequence[MixSpec]) -> tuple[SampleIndex, ...]:
    """Open the datasets of a training, in its order.

    Raises:
        DataError: no such dataset or split, or datasets whose labels do not mean the same; lists the differences.
    """
    indexes = tuple(SampleIndex.load(source.shards, source.split) for source in sources)
    for source, index in zip(sources[1:], indexes[1:], strict=True):
        if differences := list(_differences(indexes[0].manifest, index.manifest)):
            more = f" and {len(differences) - _SHOWN} more" if len(differences) > _SHOWN else ""
            raise DataError(
                f"datasets {sources[0].shards!r} and {source.shards!r} cannot be mixed, their labels differ: "
                f"{'; '.join(differences[:_SHOWN])}{more}; prepare one of them again with the labels of the other"
            )
    return indexes


def _differences(first: Manifest, other: Manifest) -> Iterator[str]:
    if first.num_classes != other.num_classes:
        yield f"{first.num_classes} and {other.num_classes} classes"
    for label, (name, other_name) in enumerate(zip(first.class_names, other.class_names, strict=False)):
        if name != other_name:
            yield f"label {label} is {name!r} and {other_name!r}"
    if first.ignore_index != other.ignore_index:
        yield f"label {first.ignore_index} and {other.ignore_index} is ignored"
