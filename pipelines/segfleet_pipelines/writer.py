"""Prepare a dataset: raw pictures and masks in, checked shards, index and manifest out."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Sequence

from segfleet.errors import DataError
from segfleet.spec.kinds import PrepareSpec
from segfleet_pipelines.adopt import adopt
from segfleet_pipelines.base_version import BaseShardTask, BaseVersion
from segfleet_pipelines.check import LabelRules
from segfleet_pipelines.datasets.base import RawDataset, RawSample, listed
from segfleet_pipelines.datasets.opening import open_dataset
from segfleet_pipelines.datasets.synthetic import generate
from segfleet_pipelines.destination import open_destination
from segfleet_pipelines.label_mistakes import refusal
from segfleet_pipelines.location import resolve_location
from segfleet_pipelines.manifest import Manifest
from segfleet_pipelines.pool import Progress, TaskResult, run_tasks, silent
from segfleet_pipelines.sealing import seal
from segfleet_pipelines.shard_plan import MAX_SHARD_BYTES, MAX_SHARD_SAMPLES, plan_shards
from segfleet_pipelines.shards import ShardTask
from segfleet_pipelines.staging import Staging, clear_finished, staging_folder

ShardTasks = list[BaseShardTask | ShardTask]


def prepare(spec: PrepareSpec, progress: Progress | None = None, tell: Callable[[str], None] | None = None) -> Manifest:
    """Write a prepared dataset to `spec.out`.

    The result depends on the raw data and the spec, not on the number of processes. It gets its name when it is
    complete. An interrupted run leaves its finished shards in a hidden folder, and the next run to the same place
    goes on from there.

    Args:
        spec: What to prepare.
        progress: Called with samples done and samples in all.
        tell: Called with what was left out of the raw data on purpose, a line each.

    Raises:
        DataError: the place is taken, the raw data do not fit their layout or the base, or samples are bad; all of
            them are counted and the first twenty listed.
    """
    if spec.adopt:
        return adopt(spec, progress)
    destination = open_destination(spec.out)
    clear_finished(destination.staging.parent)
    destination.refuse_occupied()
    draw, write, send = _stages(spec, destination.is_remote, progress)
    with staging_folder(destination.staging, str(destination)) as staging:
        dataset = _open_raw(spec, staging, draw)
        if tell is not None:
            for note in dataset.notes:
                tell(note)
        manifest = _make(spec, dataset, staging, write)
        destination.publish(staging, manifest, send)
    return manifest


def _open_raw(spec: PrepareSpec, staging: Staging, report: Progress) -> RawDataset:
    if spec.dataset != "synthetic":
        return open_dataset(spec.dataset, resolve_location(spec.raw or ""), val_share=spec.val_share, seed=spec.seed)
    raw = staging.root / f"{spec.samples}-{spec.seed}" / "synthetic"
    # The class file is drawn last: with it, the pictures of a run that was interrupted are complete.
    if not (raw / "classes.yaml").exists():
        shutil.rmtree(raw, ignore_errors=True)
        generate(raw, samples=spec.samples, seed=spec.seed, progress=report)
    return open_dataset("folder", raw, val_share=spec.val_share, seed=spec.seed)


def _make(spec: PrepareSpec, dataset: RawDataset, staging: Staging, report: Progress) -> Manifest:
    """All files of the dataset, in the staging folder."""
    base = BaseVersion.load(spec.base) if spec.base else None
    if base is not None:
        base.check_fit(dataset, spec.images)
    rules = LabelRules.of(dataset)
    planned: dict[str, ShardTasks] = {}
    for split, samples in dataset.splits.items():
        taken = base.tasks(split, samples, rules, staging) if base is not None else []
        known = {sample.key for task in taken for sample in task.samples}
        new = [sample for sample in samples if sample.key not in known]
        first = base.next_number(split) if base is not None else 0
        planned[split] = [*taken, *_new_shards(split, new, first, rules, spec, staging)]
    tasks = [task for shards in planned.values() for task in shards]
    staging.keep_only({task.path.name for task in tasks})
    _refuse_problems(run_tasks(tasks, spec.processes, staging.worker_lock, report), dataset, staging)
    return seal(dataset, planned, staging, spec.images)


def _new_shards(
    split: str, samples: Sequence[RawSample], first: int, rules: LabelRules, spec: PrepareSpec, staging: Staging
) -> list[ShardTask]:
    sizes = [_size(sample) for sample in samples]
    tasks = []
    for number, part in enumerate(plan_shards(samples, sizes, MAX_SHARD_SAMPLES, MAX_SHARD_BYTES), start=first):
        name = f"{split}-{number:06d}.tar"
        tasks.append(ShardTask(staging.shard(name), staging.record(name), split, part, rules, spec.images))
    return tasks


def _size(sample: RawSample) -> int:
    """Bytes of a sample's picture, which its mask is small against; 0 if it is missing, of which is told later."""
    try:
        return sample.image.size()
    except DataError:
        return 0


def _refuse_problems(results: Iterable[TaskResult], dataset: RawDataset, staging: Staging) -> None:
    results = list(results)
    bad = [line for result in results for line in result.bad]
    changed = [line for result in results for line in result.changed]
    if not bad and not changed:
        return
    told = (
        refusal(dataset, bad)
        if bad
        else listed("samples of the base have changed; put the old ones back or prepare anew, without a base", changed)
    )
    raise DataError(f"{told}\n{staging.remains()}" if staging.num_finished() else str(told))


def _stages(spec: PrepareSpec, sent: bool, progress: Progress | None) -> tuple[Progress, Progress, Progress]:
    """Progress of drawing, writing and sending, which share one scale where there is more to do than to write."""
    drawn = spec.dataset == "synthetic"
    num_stages = 1 + drawn + sent

    def stage(place: int) -> Progress:
        if progress is None:
            return silent
        return lambda done, total: progress(place * total + done, num_stages * total)

    return stage(0), stage(int(drawn)), stage(num_stages - 1)
