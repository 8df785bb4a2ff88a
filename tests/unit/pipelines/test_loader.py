from __future__ import annotations

import json
import multiprocessing
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from segfleet.errors import DataError
from segfleet.spec.sections import AugmentSpec
from segfleet_pipelines.augment import augment
from segfleet_pipelines.loader import Batch, eval_samples, train_loader
from segfleet_pipelines.picture import decode_image, decode_mask
from segfleet_pipelines.plan import batch_plan, sample_rng
from segfleet_pipelines.reader import SampleIndex

# How many cores this machine has does not matter here.
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")


def batches(location: Path, **changes: Any) -> list[Batch]:
    options: dict[str, Any] = {
        "augment": AugmentSpec(),
        "crop": 32,
        "seed": 1,
        "global_batch": 4,
        "rank": 0,
        "world_size": 1,
        "start_step": 0,
        "num_steps": 7,
        "processes": 0,
    }
    return list(train_loader(location, "train", **{**options, **changes}))


def assert_equal(first: list[Batch], second: list[Batch]) -> None:
    assert [batch.step for batch in first] == [batch.step for batch in second]
    for a, b in zip(first, second, strict=True):
        assert a.keys == b.keys
        for field in ("images", "masks", "extents"):
            assert torch.equal(getattr(a, field), getattr(b, field))


def test_a_batch_holds_what_plan_and_augmentation_say(shared_dataset: Path) -> None:
    index = SampleIndex.load(shared_dataset, "train")
    for batch in batches(shared_dataset):
        assert (batch.images.dtype, batch.masks.dtype, batch.extents.dtype) == (torch.uint8, torch.uint8, torch.int64)
        assert (batch.images.shape, batch.masks.shape, batch.extents.shape) == ((4, 32, 32, 3), (4, 32, 32), (4, 2))
        for ref in batch_plan(1, 9, batch.step, 4, 0, 1):
            key, image, mask = index.read_sample(ref.index)
            rng = sample_rng(1, ref.epoch, ref.index)
            image, mask = augment(decode_image(image), decode_mask(mask), AugmentSpec(), 32, 255, rng)
            height, width = mask.shape
            assert batch.keys[ref.slot] == key
            assert batch.extents[ref.slot].tolist() == [height, width]
            assert np.array_equal(batch.images[ref.slot, :height, :width], image)
            assert np.array_equal(batch.masks[ref.slot, :height, :width], mask)
            assert (batch.masks[ref.slot, height:] == 255).all()


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_loader_processes_do_not_change_the_batches(shared_dataset: Path, processes: int) -> None:
    assert_equal(batches(shared_dataset, start_step=2), batches(shared_dataset, start_step=2, processes=processes))


def test_a_resumed_loader_continues_at_the_next_sample(shared_dataset: Path) -> None:
    assert_equal(batches(shared_dataset)[3:], batches(shared_dataset, start_step=3))
    assert batches(shared_dataset, start_step=7) == []


def test_two_ranks_see_together_what_one_sees(shared_dataset: Path) -> None:
    ranks = [batches(shared_dataset, rank=rank, world_size=2) for rank in range(2)]
    for whole, *parts in zip(batches(shared_dataset), *ranks, strict=True):
        assert whole.keys == tuple(chain(*(part.keys for part in parts)))
        assert torch.equal(whole.images, torch.cat([part.images for part in parts]))
        assert torch.equal(whole.masks, torch.cat([part.masks for part in parts]))


@pytest.mark.parametrize("processes", [0, 2])
def test_loading_leaves_the_training_randomness_alone(shared_dataset: Path, processes: int) -> None:
    torch.manual_seed(3)
    expected = torch.get_rng_state()
    batches(shared_dataset, processes=processes)
    list(eval_samples(shared_dataset, "val", rank=0, world_size=1, processes=processes))
    assert torch.equal(torch.get_rng_state(), expected)


@pytest.mark.parametrize("world_size", [1, 2, 4, 20])
def test_evaluation_sees_each_sample_once(shared_dataset: Path, world_size: int) -> None:
    parts = [list(eval_samples(shared_dataset, "train", rank=r, world_size=world_size)) for r in range(world_size)]
    assert sorted(sample.index for part in parts for sample in part) == list(range(9))
    index = SampleIndex.load(shared_dataset, "train")
    for sample in chain(*parts):
        key, image, mask = index.read_sample(sample.index)
        assert sample.key == key
        assert np.array_equal(sample.image, decode_image(image))
        assert np.array_equal(sample.mask, decode_mask(mask))


def test_evaluation_keeps_its_order_with_processes(shared_dataset: Path) -> None:
    alone, helped = (
        [sample.key for sample in eval_samples(shared_dataset, "train", rank=1, world_size=2, processes=processes)]
        for processes in (0, 2)
    )
    assert alone == helped


@pytest.mark.parametrize("processes", [0, 2])
def test_damage_arrives_with_shard_and_key_and_without_a_traceback(dataset: Path, processes: int) -> None:
    key = SampleIndex.load(dataset, "train").keys[0]
    shard = dataset / "train-000000.tar"
    data = bytearray(shard.read_bytes())
    data[600] ^= 1
    shard.write_bytes(data)
    with pytest.raises(DataError) as caught:
        batches(dataset, processes=processes)
    # The error is still held, and with it every frame of the loader: its processes are gone all the same.
    assert not multiprocessing.active_children()
    assert f"shard 'train-000000.tar', key '{key}'" in str(caught.value)
    assert "Traceback" not in str(caught.value)
    with pytest.raises(DataError, match=key):
        list(eval_samples(dataset, "train", rank=0, world_size=1, processes=processes))


def test_labels_beyond_the_classes_do_not_leave_the_loader(dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def hostile(data: bytes) -> np.ndarray:
        mask = decode_mask(data).copy()
        mask[0, 0] = 3
        return mask

    monkeypatch.setattr("segfleet_pipelines.loader.decode_mask", hostile)
    with pytest.raises(DataError, match="labels beyond the 3 classes"):
        batches(dataset)


def test_pictures_of_another_size_than_the_index_says_do_not_leave_the_loader(
    dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("segfleet_pipelines.loader.decode_image", lambda data: np.zeros((5, 5, 3), np.uint8))
    with pytest.raises(DataError, match=r"picture \(5, 5\).*differ in size"):
        batches(dataset)


def test_wrong_requests_fail_at_once(shared_dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="shared equally by 3"):
        batches(shared_dataset, world_size=3)
    with pytest.raises(DataError, match="no split 'test'"):
        eval_samples(shared_dataset, "test", rank=0, world_size=1)
    with pytest.raises(DataError, match="no prepared dataset"):
        batches(tmp_path)
    (tmp_path / "manifest.json").write_text(json.dumps({"format_version": 9}))
    with pytest.raises(DataError, match="format version 9"):
        batches(tmp_path)
