"""Batches for training and samples for evaluation: a WebDataset pipeline over the sample plan.

The plan is the source, so nothing depends on the number of loader processes: process p of P builds the batches
p, p + P, p + 2P, ... and torch's loader hands them out in turn, which is their order again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import cv2
import numpy as np
import torch
import webdataset as wds
from torch import Tensor
from torch.utils.data import get_worker_info

from segfleet.errors import DataError
from segfleet.spec.sections import AugmentSpec
from segfleet_pipelines.augment import augment as augment_sample
from segfleet_pipelines.augment import pad_sample
from segfleet_pipelines.picture import Pixels, decode_image, decode_mask
from segfleet_pipelines.plan import SampleRef, batch_plan, sample_rng
from segfleet_pipelines.reader import SampleIndex


@dataclass(frozen=True, slots=True)
class Batch:
    """One rank's part of one global batch, in slot order.

    Attributes:
        images: RGB, uint8 (B, crop, crop, 3); 0 beyond the extents.
        masks: Labels, uint8 (B, crop, crop); the ignore index beyond the extents.
        extents: Height and width of each sample before padding, int64 (B, 2).
        keys: Of the samples.
        step: The global step that the batch belongs to.
    """

    images: Tensor
    masks: Tensor
    extents: Tensor
    keys: tuple[str, ...]
    step: int


@dataclass(frozen=True, slots=True)
class EvalSample:
    """One sample as it was prepared.

    Attributes:
        index: Its place in the split.
        key: Its key.
        image: RGB, uint8 (H, W, 3).
        mask: Labels, uint8 (H, W).
    """

    index: int
    key: str
    image: Pixels
    mask: Pixels


@dataclass(frozen=True, slots=True)
class _Failure:
    """An error on its way out of a loader process: torch would bury the message in a traceback."""

    message: str


def train_loader(
    location: str | Path,
    split: str,
    *,
    augment: AugmentSpec,
    crop: int,
    seed: int,
    global_batch: int,
    rank: int,
    world_size: int,
    start_step: int,
    num_steps: int,
    processes: int,
) -> Iterable[Batch]:
    """Batches of the steps start_step .. num_steps - 1, in order.

    Args:
        location: Folder of the prepared dataset.
        split: Name of the split.
        augment: What happens to each sample, by randomness of (seed, epoch, sample index) alone.
        crop: Side of a batch's pictures, pixels.
        seed: Of order and augmentation.
        global_batch: Samples a step over all ranks; `world_size` divides it.
        rank: Of this worker.
        world_size: Number of workers.
        start_step: First step; a resumed job's next one.
        num_steps: Steps of the whole job, not of this loader.
        processes: Loader processes; 0 builds the batches in the caller's.

    Raises:
        DataError: no such dataset or split; while iterating: damage, with shard and key.
        ValueError: the ranks do not divide the batch.
    """
    index = SampleIndex.load(location, split)
    batch_plan(seed, len(index), start_step, global_batch, rank, world_size)
    build = _BatchBuilder(index, augment, crop, seed)
    plan = _TrainPlan(seed, len(index), global_batch, rank, world_size, start_step, num_steps)
    return cast(Iterable[Batch], _pipeline(plan, build, processes))


def eval_samples(
    location: str | Path, split: str, *, rank: int, world_size: int, processes: int = 0
) -> Iterable[EvalSample]:
    """Every sample of a split exactly once over all ranks; rank r has the samples r, r + R, r + 2R, ...

    Raises:
        DataError: no such dataset or split; while iterating: damage, with shard and key.
    """
    index = SampleIndex.load(location, split)
    own = range(rank, len(index), world_size)
    return cast(Iterable[EvalSample], _pipeline(_EvalPlan(own), _EvalBuilder(index), processes))


@dataclass(frozen=True, slots=True)
class _TrainPlan:
    """Source stage: this loader process's share of the steps, each with its samples."""

    seed: int
    num_samples: int
    global_batch: int
    rank: int
    world_size: int
    start_step: int
    num_steps: int

    def __call__(self) -> Iterator[tuple[int, list[SampleRef]]]:
        first, stride = _loader_process()
        for step in range(self.start_step + first, self.num_steps, stride):
            yield step, batch_plan(self.seed, self.num_samples, step, self.global_batch, self.rank, self.world_size)


@dataclass(frozen=True, slots=True)
class _EvalPlan:
    """Source stage: this loader process's share of the samples."""

    samples: range

    def __call__(self) -> Iterator[int]:
        first, stride = _loader_process()
        yield from self.samples[first::stride]


@dataclass(frozen=True, slots=True)
class _BatchBuilder:
    """Stage: a step's samples, read, decoded, augmented, padded and stacked."""

    index: SampleIndex
    augment: AugmentSpec
    crop: int
    seed: int

    def __call__(self, planned: tuple[int, list[SampleRef]]) -> Batch | _Failure:
        step, refs = planned
        ignore_index = self.index.manifest.ignore_index
        images = np.zeros((len(refs), self.crop, self.crop, 3), np.uint8)
        masks = np.full((len(refs), self.crop, self.crop), ignore_index, np.uint8)
        extents = np.zeros((len(refs), 2), np.int64)
        keys = []
        for place, ref in enumerate(refs):
            try:
                key, image, mask = _decoded(self.index, ref.index)
            except DataError as error:
                return _Failure(str(error))
            rng = sample_rng(self.seed, ref.epoch, ref.index)
            image, mask = augment_sample(image, mask, self.augment, self.crop, ignore_index, rng)
            images[place], masks[place], extents[place] = pad_sample(image, mask, self.crop, ignore_index)
            keys.append(key)
        return Batch(torch.from_numpy(images), torch.from_numpy(masks), torch.from_numpy(extents), tuple(keys), step)


@dataclass(frozen=True, slots=True)
class _EvalBuilder:
    """Stage: a sample, read and decoded."""

    index: SampleIndex

    def __call__(self, i: int) -> EvalSample | _Failure:
        try:
            return EvalSample(i, *_decoded(self.index, i))
        except DataError as error:
            return _Failure(str(error))


def _decoded(index: SampleIndex, i: int) -> tuple[str, Pixels, Pixels]:
    """Key, picture and mask of sample `i`; damage names shard and key."""
    key, image_bytes, mask_bytes = index.read_sample(i)
    try:
        image, mask = decode_image(image_bytes), decode_mask(mask_bytes)
        if image.shape[:2] != mask.shape or mask.shape != tuple(index.sizes[i]):
            raise DataError(f"picture {image.shape[:2]}, mask {mask.shape} and index {index.sizes[i]} differ in size")
        # A label beyond the classes would kill a GPU's context for good: it must not leave this process.
        if cv2.countNonZero(cv2.LUT(mask, _foreign_labels(index))):
            raise DataError(f"labels beyond the {index.manifest.num_classes} classes")
    except DataError as error:
        raise DataError(f"shard {index.shard_of(i)!r}, key {key!r}: {error}; prepare the dataset again") from error
    return key, image, mask


def _foreign_labels(index: SampleIndex) -> Pixels:
    table = np.ones(256, np.uint8)
    table[: index.manifest.num_classes] = 0
    table[index.manifest.ignore_index] = 0
    return table


def _pipeline(plan: _TrainPlan | _EvalPlan, build: _BatchBuilder | _EvalBuilder, processes: int) -> wds.WebLoader:
    loader = wds.WebLoader(
        wds.DataPipeline(plan, wds.map(build)),
        batch_size=None,
        collate_fn=_unchanged,
        num_workers=processes,
        # torch draws a seed for its processes; from a generator of their own, or the model's dropout would shift.
        generator=torch.Generator(),
    )
    return loader.compose(_raise_failures)


def _loader_process() -> tuple[int, int]:
    """Number of this loader process and how many there are."""
    info = get_worker_info()
    return (info.id, info.num_workers) if info else (0, 1)


def _unchanged(item: object) -> object:
    return item


def _raise_failures(source: Iterator[object]) -> Iterator[object]:
    """Last stage: pass everything on, and end the loader processes before an error is raised.

    Whoever holds the error holds its frames, and these the processes; left to the garbage collector, torch waits five
    seconds for each of them.
    """
    failure = None
    for item in source:
        if isinstance(item, _Failure):
            failure = item
            break
        yield item
    del source
    if failure is not None:
        raise DataError(failure.message)
