from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from segfleet.errors import DataError
from segfleet.spec.sections import DataSpec, MixSpec
from segfleet_pipelines.manifest import Manifest
from segfleet_pipelines.mixture import open_datasets


@pytest.fixture
def relabelled(dataset: Path) -> Callable[..., str]:
    """The dataset with another manifest; its location."""

    def change(**fields: object) -> str:
        manifest = replace(Manifest.load(dataset), **fields)
        (dataset / "manifest.json").unlink()
        manifest.save(dataset)
        return str(dataset)

    return change


def test_datasets_of_one_label_space_are_opened_in_order(shared_dataset: Path, relabelled: Callable[..., str]) -> None:
    other = relabelled(name="other", palette=((1, 1, 1), (2, 2, 2), (3, 3, 3)))
    data = DataSpec(shards=str(shared_dataset), mix=(MixSpec(shards=other, split="val"),))
    indexes = open_datasets(data.sources)
    assert [(index.manifest.name, index.split, len(index)) for index in indexes] == [
        ("raw", "train", 9),
        ("other", "val", 2),
    ]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"class_names": ("sky", "street", "tree")}, "label 1 is 'road' and 'street'"),
        ({"class_names": ("sky", "tree", "road")}, "label 1 is 'road' and 'tree'; label 2 is 'tree' and 'road'"),
        ({"class_names": ("sky", "road", "tree", "car"), "palette": ((0, 0, 0),) * 4}, "3 and 4 classes"),
        ({"ignore_index": 254}, "label 255 and 254 is ignored"),
    ],
)
def test_other_labels_are_listed(
    shared_dataset: Path, relabelled: Callable[..., str], fields: dict[str, object], message: str
) -> None:
    data = DataSpec(shards=str(shared_dataset), mix=(MixSpec(shards=relabelled(**fields)),))
    with pytest.raises(DataError) as caught:
        open_datasets(data.sources)
    assert message in str(caught.value)
    assert str(shared_dataset) in str(caught.value)


def test_a_long_list_of_differences_is_cut(shared_dataset: Path, relabelled: Callable[..., str]) -> None:
    names = tuple(f"class {number}" for number in range(40))
    first = relabelled(class_names=names, palette=((0, 0, 0),) * 40)
    data = DataSpec(shards=first, mix=(MixSpec(shards=str(shared_dataset)),))
    with pytest.raises(DataError, match="40 and 3 classes"):
        open_datasets(data.sources)


def test_a_missing_split_of_a_mixed_dataset_is_named(shared_dataset: Path) -> None:
    data = DataSpec(shards=str(shared_dataset), mix=(MixSpec(shards=str(shared_dataset), split="extra"),))
    with pytest.raises(DataError, match="no split 'extra'"):
        open_datasets(data.sources)
