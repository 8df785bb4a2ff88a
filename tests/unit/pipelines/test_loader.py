from __future__ import annotations

import json
import multiprocessing
import shutil
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from segfleet.errors import DataError
from segfleet.spec.kinds import PrepareSpec
from segfleet.spec.sections import AugmentSpec, DataSpec, LoopSpec, MixSpec
from segfleet_pipelines.augment import augment_sample
from segfleet_pipelines.batch import Batch
from segfleet_pipelines.loader import eval_samples, train_loader
from segfleet_pipelines.mask_codec import unpack_mask
from segfleet_pipelines.picture import decode_image
from segfleet_pipelines.plan import OrderPlan
from segfleet_pipelines.reader import SampleIndex
from segfleet_pipelines.shuffle import sample_rng
from segfleet_pipelines.writer import prepare

# How many cores this machine has does not matter here.
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")

BATCH = {"steps": 7, "global_batch": 4, "crop": 32, "seed": 1}


def batches(
    location: Path,
    *,
    augment: AugmentSpec | None = None,
    data: dict[str, Any] | None = None,
    processes: int = 0,
    last_batch: Any = "wrap",
    steps: int = 7,
    **options: Any,
) -> list[Batch]:
    loop = LoopSpec(steps=steps, global_batch=4, crop=32, seed=1, last_batch=last_batch, loader_processes=processes)
    return list(train_loader(DataSpec(shards=str(location), **(data or {})), augment or AugmentSpec(), loop, **options))


def assert_equal(first: list[Batch], second: list[Batch]) -> None:
    assert [batch.step for batch in first] == [batch.step for batch in second]
    for a, b in zip(first, second, strict=True):
        assert (a.keys, a.skipped, a.num_skipped) == (b.keys, b.skipped, b.num_skipped)
        for field in ("images", "masks", "extents"):
            assert torch.equal(getattr(a, field), getattr(b, field))


def split_keys(location: Path, split: str = "train") -> list[str]:
    return list(SampleIndex.load(location, split).keys)


def test_a_batch_holds_what_plan_and_augmentation_say(shared_dataset: Path) -> None:
    index = SampleIndex.load(shared_dataset, "train")
    plan = OrderPlan((tuple(index.shard_counts.tolist()),), (1.0,), 1, 4)
    for batch in batches(shared_dataset):
        assert (batch.images.dtype, batch.masks.dtype, batch.extents.dtype) == (torch.uint8, torch.uint8, torch.int64)
        assert (batch.images.shape, batch.masks.shape, batch.extents.shape) == ((4, 32, 32, 3), (4, 32, 32), (4, 2))
        assert batch.jitter is None
        for ref in plan.samples(batch.step):
            key, image, data = index.read_sample(ref.index)
            mask = unpack_mask(data, index.members(ref.index)[1], *(int(side) for side in index.sizes[ref.index]))
            sample = augment_sample(image, mask, AugmentSpec(), 32, 255, sample_rng(1, ref.epoch, ref.index))
            height, width = sample.mask.shape
            assert batch.keys[ref.slot] == key
            assert batch.extents[ref.slot].tolist() == [height, width]
            assert np.array_equal(batch.images[ref.slot, :height, :width], sample.image)
            assert np.array_equal(batch.masks[ref.slot, :height, :width], sample.mask)
            assert (batch.masks[ref.slot, height:] == 255).all()


def test_work_for_the_device_travels_with_the_batch(shared_dataset: Path) -> None:
    drawn = batches(shared_dataset, augment=AugmentSpec(on_device=True))
    assert {(batch.jitter.shape, batch.jitter.dtype) for batch in drawn if batch.jitter is not None} == {
        ((4, 7), torch.float32)
    }
    assert len({tuple(row) for batch in drawn for row in batch.jitter.tolist()}) > 20  # type: ignore[union-attr]
    again = batches(shared_dataset, augment=AugmentSpec(on_device=True), processes=2)
    assert all(torch.equal(a.jitter, b.jitter) for a, b in zip(drawn, again, strict=True))  # type: ignore[arg-type]


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_loader_processes_do_not_change_the_batches(shared_dataset: Path, processes: int) -> None:
    assert_equal(batches(shared_dataset, start_step=2), batches(shared_dataset, start_step=2, processes=processes))


def test_a_resumed_loader_continues_at_the_next_sample(shared_dataset: Path) -> None:
    assert_equal(batches(shared_dataset)[3:], batches(shared_dataset, start_step=3))
    assert batches(shared_dataset, start_step=7) == []


@pytest.mark.parametrize("last_batch", ["wrap", "short"])
def test_two_ranks_see_together_what_one_sees(shared_dataset: Path, last_batch: str) -> None:
    alone = batches(shared_dataset, last_batch=last_batch)
    ranks = [batches(shared_dataset, rank=rank, world_size=2, last_batch=last_batch) for rank in range(2)]
    for whole, *parts in zip(alone, *ranks, strict=True):
        assert whole.keys == tuple(chain(*(part.keys for part in parts)))
        assert torch.equal(whole.images, torch.cat([part.images for part in parts]))
        assert torch.equal(whole.masks, torch.cat([part.masks for part in parts]))


def assert_empty(batch: Batch, slot: int) -> None:
    assert batch.keys[slot] == ""
    assert batch.extents[slot].tolist() == [0, 0]
    assert (batch.masks[slot] == 255).all()
    assert not batch.images[slot].any()


def test_a_short_batch_ends_with_empty_slots(shared_dataset: Path) -> None:
    # 9 samples in batches of 4.
    shorts = batches(shared_dataset, last_batch="short", steps=6, augment=AugmentSpec(on_device=True))
    assert [sum(map(bool, batch.keys)) for batch in shorts] == [4, 4, 1, 4, 4, 1]
    for slot in (1, 2, 3):
        assert_empty(shorts[2], slot)
    for epoch in (shorts[:3], shorts[3:]):
        keys = [key for batch in epoch for key in batch.keys if key]
        assert sorted(keys) == sorted(split_keys(shared_dataset))


@pytest.mark.parametrize("processes", [0, 2])
def test_skipped_samples_leave_their_slots_empty_and_are_counted(shared_dataset: Path, processes: int) -> None:
    skips = (frozenset({2, 7}),)
    left_out = {split_keys(shared_dataset)[i] for i in (2, 7)}
    whole = batches(shared_dataset, steps=9)
    ranks = [
        batches(shared_dataset, steps=9, skips=skips, rank=rank, world_size=2, processes=processes) for rank in range(2)
    ]
    for before, *parts in zip(whole, *ranks, strict=True):
        keys = tuple(chain(*(part.keys for part in parts)))
        skipped = [key for part in parts for key in part.skipped]
        assert keys == tuple("" if key in left_out else key for key in before.keys)
        assert skipped == [key for key in before.keys if key in left_out]
        assert {part.num_skipped for part in parts} == {len(skipped)}
        images = torch.cat([part.images for part in parts])
        for slot, key in enumerate(keys):
            if key:
                # Nothing else moves.
                assert torch.equal(images[slot], before.images[slot])
            else:
                assert_empty(parts[slot // 2], slot % 2)
    # 36 places are four epochs of 9: what is seen and what is left out are the manifest, each time.
    drawn = [key for parts in zip(*ranks, strict=True) for part in parts for key in (*part.keys, *part.skipped) if key]
    assert sorted(drawn) == sorted(split_keys(shared_dataset) * 4)


def test_a_damaged_sample_that_is_left_out_is_never_read(dataset: Path) -> None:
    flip_byte(dataset / "train-000000.tar", 600)
    with pytest.raises(DataError, match=split_keys(dataset)[0]):
        batches(dataset)
    assert len(batches(dataset, skips=(frozenset({0}),))) == 7


@pytest.fixture
def other_dataset(tmp_path: Path, prepare_spec: Callable[..., PrepareSpec], raw: Path) -> Path:
    for folder in ("images", "masks"):
        for path in (raw / folder).iterdir():
            path.rename(path.with_name(f"other-{path.name}"))
    prepare(prepare_spec(raw=str(raw), out=str(tmp_path / "other"), seed=5))
    return tmp_path / "other"


@pytest.mark.parametrize("processes", [0, 2])
def test_mixed_datasets_have_their_shares_and_their_own_epochs(
    shared_dataset: Path, other_dataset: Path, processes: int
) -> None:
    mixed = {"mix": (MixSpec(shards=str(other_dataset), weight=3.0),)}
    drawn = batches(shared_dataset, data=mixed, steps=18, processes=processes)
    keys = [key for batch in drawn for key in batch.keys]
    assert [sum(key.startswith("other") for key in batch.keys) for batch in drawn] == [3] * 18
    own, others = ([key for key in keys if key.startswith("other") is other] for other in (False, True))
    assert sorted(own) == sorted(split_keys(shared_dataset) * 2)
    assert sorted(others) == sorted(split_keys(other_dataset) * 6)
    assert_equal(drawn[5:], batches(shared_dataset, data=mixed, steps=18, start_step=5))


def test_a_dataset_mixed_with_itself_is_augmented_anew(shared_dataset: Path) -> None:
    drawn = batches(shared_dataset, data={"mix": (MixSpec(shards=str(shared_dataset)),)}, steps=4)
    pictures: dict[str, set[bytes]] = {}
    for batch in drawn:
        for key, image in zip(batch.keys, batch.images, strict=True):
            pictures.setdefault(key, set()).add(image.numpy().tobytes())
    # Each sample twice in 16 places, but for the last one or two of each epoch.
    assert sorted(map(len, pictures.values()))[2:] == [2] * (len(pictures) - 2)


def test_windows_are_read_shard_by_shard(tmp_path: Path, many_shards: Path) -> None:
    index = SampleIndex.load(many_shards, "train")
    shards = {key: index.shard_of(i) for i, key in enumerate(index.keys)}
    assert len(set(shards.values())) > 3
    drawn = batches(many_shards, data={"shuffle_shards": 1}, steps=9)
    keys = [key for batch in drawn for key in batch.keys]
    for epoch in range(4):
        order = [shards[key] for key in keys[epoch * 9 : (epoch + 1) * 9]]
        assert [shard for i, shard in enumerate(order) if i == 0 or shard != order[i - 1]] == list(dict.fromkeys(order))


@pytest.fixture
def many_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, raw: Path, prepare_spec: Any) -> Path:
    monkeypatch.setattr("segfleet_pipelines.writer.MAX_SHARD_SAMPLES", 2)
    prepare(prepare_spec(raw=str(raw), out=str(tmp_path / "many")))
    return tmp_path / "many"


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
        member = index.members(sample.index)[1]
        assert np.array_equal(sample.mask, unpack_mask(mask, member, *sample.mask.shape))


def test_evaluation_keeps_its_order_with_processes(shared_dataset: Path) -> None:
    alone, helped = (
        [sample.key for sample in eval_samples(shared_dataset, "train", rank=1, world_size=2, processes=processes)]
        for processes in (0, 2)
    )
    assert alone == helped


def flip_byte(shard: Path, place: int) -> None:
    with shard.open("r+b") as file:
        file.seek(place)
        value = file.read(1)[0]
        file.seek(place)
        file.write(bytes([value ^ 1]))


@pytest.mark.parametrize("processes", [0, 2])
def test_damage_arrives_with_shard_and_key_and_without_a_traceback(dataset: Path, processes: int) -> None:
    key = split_keys(dataset)[0]
    flip_byte(dataset / "train-000000.tar", 600)
    with pytest.raises(DataError) as caught:
        batches(dataset, processes=processes)
    # The error is still held, and with it every frame of the loader: its processes are gone all the same.
    assert not multiprocessing.active_children()
    assert f"shard 'train-000000.tar', key '{key}'" in str(caught.value)
    assert "Traceback" not in str(caught.value)
    with pytest.raises(DataError, match=key):
        list(eval_samples(dataset, "train", rank=0, world_size=1, processes=processes))


@pytest.mark.parametrize("processes", [0, 2])
def test_a_shard_overwritten_in_mid_run_is_noticed(dataset: Path, processes: int) -> None:
    loop = LoopSpec(**{**BATCH, "steps": 200}, loader_processes=processes)
    running = iter(train_loader(DataSpec(shards=str(dataset)), AugmentSpec(), loop))
    for _ in range(3):
        next(running)
    shard = dataset / "train-000000.tar"
    with shard.open("r+b") as file:
        file.write(bytes(len(shard.read_bytes())))
    with pytest.raises(DataError, match=r"shard 'train-000000.tar', key '.*has changed since"):
        list(running)


def test_a_shard_exchanged_in_mid_run_is_noticed_when_it_is_opened(dataset: Path, other_dataset: Path) -> None:
    loop = LoopSpec(**BATCH, loader_processes=0)
    running = iter(train_loader(DataSpec(shards=str(dataset)), AugmentSpec(), loop))
    before = [next(running) for _ in range(3)]
    shutil.copy(other_dataset / "train-000000.tar", dataset / "new.tar")
    (dataset / "new.tar").replace(dataset / "train-000000.tar")
    # Who has the old file open goes on reading that; who opens the new one is told.
    before += list(running)
    assert len(before) == 7
    with pytest.raises(DataError, match=r"shard 'train-000000.tar', key "):
        batches(dataset, start_step=3)


def test_labels_beyond_the_classes_do_not_leave_the_loader(dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def hostile(*args: Any) -> np.ndarray:
        mask = unpack_mask(*args).copy()
        mask[0, 0] = 3
        return mask

    monkeypatch.setattr("segfleet_pipelines.batch.unpack_mask", hostile)
    with pytest.raises(DataError, match=r"key '.*labels beyond the 3 classes"):
        batches(dataset)


def test_pictures_of_another_size_than_the_index_says_do_not_leave_the_loader(
    dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = SampleIndex.read_sample
    images = [read(SampleIndex.load(dataset, "train"), i)[1] for i in range(9)]

    def exchanged(index: SampleIndex, i: int) -> tuple[str, bytes, bytes]:
        key, _, mask = read(index, i)
        return key, images[(i + 1) % 9], mask

    monkeypatch.setattr(SampleIndex, "read_sample", exchanged)
    for use in (batches, lambda folder: list(eval_samples(folder, "train", rank=0, world_size=1))):
        with pytest.raises(DataError, match=r"shard 'train-000000.tar', key '.*picture"):
            use(dataset)


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


def test_other_content_than_the_job_began_on_is_refused(shared_dataset: Path, other_dataset: Path) -> None:
    own, other = (SampleIndex.load(folder, "train").manifest.content_id for folder in (shared_dataset, other_dataset))
    assert batches(shared_dataset, content_ids=(own,))
    with pytest.raises(DataError, match=f"{shared_dataset} has content id {own[:12]}, the job began on {other[:12]}"):
        batches(shared_dataset, content_ids=(other,))
    mixed = {"mix": (MixSpec(shards=str(other_dataset)),)}
    assert batches(shared_dataset, data=mixed, content_ids=(own, other))
    with pytest.raises(DataError, match=f"{other_dataset} has content id"):
        batches(shared_dataset, data=mixed, content_ids=(own, own))
    with pytest.raises(DataError, match=f"{shared_dataset} has content id"):
        eval_samples(shared_dataset, "val", rank=0, world_size=1, content_id=other)
