"""Batches for training and samples for evaluation: a WebDataset pipeline over the plan.

The plan is the source, so nothing depends on the number of loader processes: process p of P builds the batches
p, p + P, p + 2P, ... and torch's loader hands them out in turn, which is their order again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
import webdataset as wds
from torch.utils.data import get_worker_info

from segfleet.errors import DataError
from segfleet.spec.sections import AugmentSpec, DataSpec, LoopSpec
from segfleet_pipelines.batch import Batch, BatchBuilder, EvalBuilder, EvalSample, Failure, Part, Skips
from segfleet_pipelines.mixture import open_datasets
from segfleet_pipelines.plan import OrderPlan
from segfleet_pipelines.prefetch import ShardFetcher
from segfleet_pipelines.reader import SampleIndex

# Batches that each loader process may be ahead.
PREFETCH = 2


def train_loader(
    data: DataSpec,
    augment: AugmentSpec,
    loop: LoopSpec,
    *,
    rank: int = 0,
    world_size: int = 1,
    start_step: int = 0,
    skips: Skips = (),
    content_ids: Sequence[str] = (),
    pin_memory: bool = False,
) -> Iterable[Batch]:
    """Batches of the steps start_step .. loop.steps - 1, in order.

    Args:
        data: Which datasets, and how they are shuffled and mixed.
        augment: What happens to each sample, by randomness of (seed, epoch, sample index) alone.
        loop: Steps, global batch, crop, seed, last batch and loader processes (0: the caller's own).
        rank: Of this worker.
        world_size: Number of workers; a divisor of the global batch.
        start_step: First step; a resumed job's next one.
        skips: For each of `data.sources` the samples to leave out; their slots stay empty, so no other sample moves.
        content_ids: For each of `data.sources` what it must hold; empty: whatever it does.
        pin_memory: Put the batches into page-locked memory, from which a GPU copies while it computes.

    Raises:
        DataError: no such dataset or split, other content, or datasets that do not fit together; while iterating:
            damage, with shard and key.
        ValueError: the ranks do not divide the batch.
    """
    indexes = open_datasets(data.sources)
    for index, content_id in zip(indexes, content_ids, strict=bool(content_ids)):
        _require_content(index, content_id)
    skips = skips or (frozenset[int](),) * len(indexes)
    plan = OrderPlan(
        tuple(tuple(index.shard_counts.tolist()) for index in indexes),
        tuple(source.weight for source in data.sources),
        loop.seed,
        loop.global_batch,
        loop.last_batch,
        data.shuffle_shards,
        data.share,
    )
    slots = plan.slots(rank, world_size)
    source = _TrainPlan(plan, slots, rank, world_size, range(start_step, loop.steps), skips)
    build = BatchBuilder(indexes, skips, augment, loop.crop, loop.seed)
    pipeline = _pipeline(source, build, loop.loader_processes, pin_memory)
    if any(index.is_remote for index in indexes):
        fetcher = ShardFetcher(plan, lambda dataset, shard: indexes[dataset].fetch(shard))
        pipeline = pipeline.compose(fetcher.follow)
    return cast(Iterable[Batch], pipeline)


def eval_samples(
    location: str | Path, split: str, *, rank: int, world_size: int, processes: int = 0, content_id: str = ""
) -> Iterable[EvalSample]:
    """Every sample of a split exactly once over all ranks; rank r has the samples r, r + R, r + 2R, ...

    Raises:
        DataError: no such dataset or split, or not of the content id, if one is given; while iterating: damage, with
            shard and key.
    """
    index = SampleIndex.load(location, split)
    if content_id:
        _require_content(index, content_id)
    own = range(rank, len(index), world_size)
    return cast(Iterable[EvalSample], _pipeline(_EvalPlan(own), EvalBuilder(index), processes))


def _require_content(index: SampleIndex, content_id: str) -> None:
    """A dataset may be exchanged as a whole while a job runs: then every byte of it is sound, and another."""
    if (found := index.manifest.content_id) != content_id:
        raise DataError(
            f"dataset {index.address} has content id {found[:12]}, the job began on {content_id[:12]}; "
            "put the data back, or submit a new job"
        )


@dataclass(frozen=True, slots=True)
class _TrainPlan:
    """Source stage: this loader process's share of the steps, each with its samples."""

    plan: OrderPlan
    slots: range
    rank: int
    world_size: int
    steps: range
    skips: Skips

    def __call__(self) -> Iterator[Part]:
        first, stride = _loader_process()
        for step in self.steps[first::stride]:
            refs = self.plan.samples(step, self.rank, self.world_size)
            yield Part(step, self.slots, refs, self._count_skipped(step))

    def _count_skipped(self, step: int) -> int:
        if not any(self.skips):
            return 0
        return sum(ref.index in self.skips[ref.dataset] for ref in self.plan.samples(step))


@dataclass(frozen=True, slots=True)
class _EvalPlan:
    """Source stage: this loader process's share of the samples."""

    samples: range

    def __call__(self) -> Iterator[int]:
        first, stride = _loader_process()
        yield from self.samples[first::stride]


def _pipeline(
    plan: _TrainPlan | _EvalPlan, build: BatchBuilder | EvalBuilder, processes: int, pin_memory: bool = False
) -> wds.WebLoader:
    loader = wds.WebLoader(
        wds.DataPipeline(plan, wds.map(build)),
        batch_size=None,
        collate_fn=_unchanged,
        num_workers=processes,
        prefetch_factor=PREFETCH if processes else None,
        # Forked processes share the index; any other start would copy it into each.
        multiprocessing_context="fork" if processes else None,
        pin_memory=pin_memory,
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
        if isinstance(item, Failure):
            failure = item
            break
        yield item
    del source
    if failure is not None:
        raise DataError(failure.message)
