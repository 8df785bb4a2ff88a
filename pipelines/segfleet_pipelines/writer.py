"""Prepare a dataset: raw pictures and masks in, checked shards, index and manifest out."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from segfleet.errors import DataError, SegfleetError
from segfleet.spec.kinds import PrepareSpec
from segfleet_pipelines.check import CheckedSample, LabelRules, check_chunk
from segfleet_pipelines.datasets.base import RawDataset, RawSample, listed
from segfleet_pipelines.datasets.opening import open_dataset
from segfleet_pipelines.datasets.synthetic import generate
from segfleet_pipelines.location import resolve_location
from segfleet_pipelines.manifest import INDEX_NAME, FileInfo, Manifest, SplitInfo
from segfleet_pipelines.reader import INDEX_SCHEMA
from segfleet_pipelines.shards import ShardWriter
from segfleet_pipelines.staging import publish, staging_folder

Progress = Callable[[int, int], None]

_CHUNK = 8
_CHUNKS_AHEAD = 4  # for each process: enough to keep it busy, little enough to fit into memory


def prepare(spec: PrepareSpec, progress: Progress | None = None) -> Manifest:
    """Write a prepared dataset to `spec.out`.

    The result depends on the raw data and the spec, not on the number of processes. It gets its name when it is
    complete; an interrupted run leaves nothing but a hidden folder that the next run removes.

    Args:
        spec: What to prepare.
        progress: Called with samples done and samples in all.

    Raises:
        DataError: the place is taken, the raw data do not fit their layout, or samples are bad; all of them are
            counted and the first twenty listed.
    """
    report = _stages(spec, progress)
    out = resolve_location(spec.out)
    with staging_folder(out) as work:
        finished = work / "dataset"
        try:
            finished.mkdir()
            manifest = _write(_open_raw(spec, work, report[0]), finished, spec.processes, report[1])
        except OSError as error:
            raise DataError(
                f"{out} cannot be written: {error.strerror or error}; free or choose another place"
            ) from error
        publish(finished, out)
    return manifest


def _open_raw(spec: PrepareSpec, work: Path, report: Progress) -> RawDataset:
    if spec.dataset != "synthetic":
        return open_dataset(spec.dataset, resolve_location(spec.raw or ""), val_share=spec.val_share, seed=spec.seed)
    raw = work / "synthetic"
    generate(raw, samples=spec.samples, seed=spec.seed, progress=report)
    return open_dataset("folder", raw, val_share=spec.val_share, seed=spec.seed)


def _write(dataset: RawDataset, folder: Path, processes: int, report: Progress) -> Manifest:
    samples = [sample for split in dataset.splits.values() for sample in split]
    checked = _checked(samples, LabelRules.of(dataset), processes)
    splits: dict[str, SplitInfo] = {}
    rows: list[dict[str, Any]] = []
    bad: list[str] = []
    done = 0
    for split, members in dataset.splits.items():
        with ShardWriter(folder, split) as writer:
            for result in islice(checked, len(members)):
                if isinstance(result, CheckedSample):
                    writer.add(result)
                else:
                    bad.append(result)
                done += 1
                report(done, len(samples))
        rows += writer.rows
        splits[split] = SplitInfo(len(writer.rows), tuple(writer.shards))
    if bad:
        raise listed("samples cannot be used; mend or remove them", bad)
    index = _write_index(folder / INDEX_NAME, rows)
    manifest = Manifest(dataset.name, dataset.class_names, dataset.palette, dataset.ignore_index, splits, index)
    manifest.save(folder)
    return manifest


def _write_index(path: Path, rows: list[dict[str, Any]]) -> FileInfo:
    pq.write_table(pa.Table.from_pylist(rows, schema=INDEX_SCHEMA), path, compression="zstd")
    with path.open("rb") as file:
        os.fsync(file.fileno())
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    return FileInfo(path.name, sha256, path.stat().st_size)


def _checked(samples: list[RawSample], rules: LabelRules, processes: int) -> Iterator[CheckedSample | str]:
    """Check all samples, in order; a bad one gives its line."""
    chunks = [samples[start : start + _CHUNK] for start in range(0, len(samples), _CHUNK)]
    if processes == 1:
        for chunk in chunks:
            yield from check_chunk(chunk, rules)
        return
    # Fresh processes, not forked ones: the caller may hold threads and locks that a fork would copy in mid-use.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(min(processes, len(chunks)), mp_context=context, initializer=_begin_process)
    try:
        waiting: deque[Future[list[CheckedSample | str]]] = deque()
        for chunk in chunks:
            waiting.append(pool.submit(check_chunk, chunk, rules))
            if len(waiting) > processes * _CHUNKS_AHEAD:
                yield from waiting.popleft().result()
        for future in waiting:
            yield from future.result()
    except BrokenProcessPool as error:
        raise SegfleetError("a checking process was killed, perhaps for lack of memory; use fewer processes") from error
    finally:
        pool.shutdown(cancel_futures=True)


def _begin_process() -> None:
    """In a checking process: leave Ctrl-C to the parent, and end with it whatever ends it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


def _stages(spec: PrepareSpec, progress: Progress | None) -> tuple[Progress, Progress]:
    """Progress of drawing and of writing, which share one scale: synthetic pictures are counted in both."""
    if progress is None:
        return _silent, _silent
    if spec.dataset != "synthetic":
        return _silent, progress
    return (
        lambda done, total: progress(done, 2 * total),
        lambda done, total: progress(total + done, 2 * total),
    )


def _silent(_done: int, _total: int) -> None:
    """Nobody wants to know."""
