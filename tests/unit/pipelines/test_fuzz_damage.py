"""Damage at random places of a prepared dataset. None passes unnoticed, and none ends in anything but a DataError."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from byte_surgery import SURGEONS, damaged
from fuzzing import (
    FILES,
    SHARDS,
    SPLITS,
    damage_at_random,
    notices,
    prepare_tiny,
    read_samples,
    require_noticed,
)
from segfleet.errors import DataError
from segfleet_pipelines.loader import eval_samples
from segfleet_pipelines.reader import SampleIndex
from segfleet_pipelines.verify import check_shards


@pytest.fixture(scope="module")
def tiny_dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.mark.integration
def test_random_damage_is_noticed(tiny_dataset: Path, tmp_path: Path) -> None:
    done = damage_at_random(tiny_dataset, tmp_path / "dataset", cases=200, seed=20)
    assert {kind for kind, _ in done} == set(SURGEONS)
    assert {name for _, name in done} == set(FILES)


@pytest.mark.parametrize("budget", [0.0, 0.5, 1.0])
def test_what_a_budget_leaves_out_is_exactly_what_cannot_be_read(
    tiny_dataset: Path, tmp_path: Path, budget: float
) -> None:
    dataset = shutil.copytree(tiny_dataset, tmp_path / "dataset")
    rng = np.random.default_rng(21)
    left_out = 0
    for _ in range(60):
        _, data = damaged(rng, (tiny_dataset / SHARDS[0]).read_bytes())
        (dataset / SHARDS[0]).write_bytes(data)
        sound = read_samples(dataset)["train"]
        try:
            skipped = check_shards(dataset, "train", budget)
        except DataError:
            assert budget == 0 or len(sound) < 3 * (1 - budget)
            continue
        index = SampleIndex.load(dataset, "train")
        assert [index.read_sample(i) for i in range(3) if i not in skipped] == sound
        left_out += len(skipped)
    assert (left_out > 0) == (budget > 0)


def test_the_loader_ends_with_shard_and_key_or_gives_what_was_prepared(tiny_dataset: Path, tmp_path: Path) -> None:
    dataset = shutil.copytree(tiny_dataset, tmp_path / "dataset")
    sound = {sample.key: sample for sample in eval_samples(dataset, "train", rank=0, world_size=1)}
    rng = np.random.default_rng(22)
    errors: list[str] = []
    for _ in range(60):
        _, data = damaged(rng, (tiny_dataset / SHARDS[0]).read_bytes())
        (dataset / SHARDS[0]).write_bytes(data)
        try:
            for sample in eval_samples(dataset, "train", rank=0, world_size=1):
                assert np.array_equal(sample.image, sound[sample.key].image)
                assert np.array_equal(sample.mask, sound[sample.key].mask)
        except DataError as error:
            errors.append(str(error))
    assert all("shard 'train-000000.tar', key 's" in error for error in errors)
    assert len(errors) > 20


def test_exchanged_shards_are_noticed(tiny_dataset: Path, tmp_path: Path) -> None:
    """F63, F69: two shards under each other's name, and shards of another dataset of the same names, keys and sizes."""
    sound = read_samples(tiny_dataset)
    dataset = shutil.copytree(tiny_dataset, tmp_path / "dataset")
    for name, other in zip(SHARDS, reversed(SHARDS), strict=True):
        shutil.copy(tiny_dataset / other, dataset / name)
    require_noticed(dataset, sound, "swapped shards")
    assert all(notices(dataset, split) for split in SPLITS)
    assert read_samples(dataset) == {"train": [], "val": []}

    other_dataset = prepare_tiny(tmp_path / "other", seed=1)
    for name in (*SHARDS, "samples.parquet", "manifest.json"):
        dataset = shutil.copytree(tiny_dataset, tmp_path / f"with-{name}")
        shutil.copy(other_dataset / name, dataset / name)
        require_noticed(dataset, sound, f"{name} of another dataset")
