"""Adopt WebDataset shards made elsewhere: check and index every sample where it lies, and rewrite nothing."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from segfleet.errors import DataError
from segfleet.spec.kinds import PrepareSpec
from segfleet.spec.sections import JOB_NAME
from segfleet_pipelines.adopt_shard import AdoptTask, raw_sample
from segfleet_pipelines.check import LabelRules
from segfleet_pipelines.datasets.base import RawDataset, RawSample, listed, require_folder
from segfleet_pipelines.datasets.class_table import class_table, read_classes
from segfleet_pipelines.datasets.pascal_context import classes_59
from segfleet_pipelines.destination import Destination, open_destination
from segfleet_pipelines.label_mistakes import explain
from segfleet_pipelines.local_files import link_or_copy, sync_folder
from segfleet_pipelines.location import parse_location, resolve_location
from segfleet_pipelines.manifest import INDEX_NAME, MANIFEST_NAME, SHARD_NAME, Manifest
from segfleet_pipelines.pairing import Paired, pair_members
from segfleet_pipelines.pool import Progress, run_tasks, silent
from segfleet_pipelines.reader import INDEX_SCHEMA
from segfleet_pipelines.sealing import seal
from segfleet_pipelines.staging import Staging, clear_finished, staging_folder
from segfleet_pipelines.tar_walk import walk_tar

# train-000003, train_3, train-00003-of-00100: the split, then the number.
_NUMBERED = re.compile(r"(?P<split>.+?)[-_](?P<number>[0-9]{1,18})(?:[-_]of[-_][0-9]{1,18})?")
_COMPRESSED = (".tar.gz", ".tgz", ".tar.zst", ".tar.bz2", ".tar.xz")
_CLASS_FILE = "classes.yaml"


@dataclass(frozen=True, slots=True)
class _Found:
    """A shard to adopt and what its headers say."""

    path: Path
    split: str
    paired: Paired


def adopt(spec: PrepareSpec, progress: Progress | None = None) -> Manifest:
    """Write samples.parquet and manifest.json for the shards in `spec.raw`.

    Masks must hold final labels; `spec.dataset` says where the classes come from. The splits follow from the shards'
    names. If `spec.out` is another folder, the shards are linked to it, or copied if it is on another disk; to an
    object store they are sent.

    Args:
        spec: What to adopt.
        progress: Called with samples done and samples in all.

    Raises:
        DataError: the place is taken, there are no shards, or samples are bad or not clear; all of them are counted and
            the first twenty listed.
    """
    raw = require_folder(resolve_location(spec.raw or ""), "give the folder that holds the shards")
    destination = _destination(spec.out, raw)
    clear_finished(destination.staging.parent)
    destination.refuse_occupied()
    classes = _classes(spec.dataset, raw)
    found, problems = _read_headers(_shard_paths(raw))
    with staging_folder(destination.staging, str(destination)) as staging:
        tasks = _tasks(found, LabelRules.of(classes), staging)
        results = run_tasks(tasks, spec.processes, staging.worker_lock, progress or silent)
        if problems := [*problems, *(line for result in results for line in result.bad)]:
            raise _refusal(classes, found, problems)
        manifest = seal(classes, _by_split(tasks), staging)
        if not isinstance(destination, _InPlace):
            for shard in found:
                staging.shard(shard.path.name).unlink(missing_ok=True)
                link_or_copy(shard.path, staging.shard(shard.path.name))
        destination.publish(staging, manifest, progress or silent)
    return manifest


@dataclass(frozen=True, slots=True)
class _InPlace:
    """The folder that the shards are in already."""

    folder: Path

    is_remote = False

    @property
    def staging(self) -> Path:
        return self.folder / ".adopt.partial"

    def refuse_occupied(self) -> None:
        if (self.folder / MANIFEST_NAME).exists():
            raise DataError(f"{self.folder} holds a prepared dataset already; remove its {MANIFEST_NAME} to adopt anew")
        index = self.folder / INDEX_NAME
        if index.exists() and not _is_index(index):
            raise DataError(
                f"{index} is of another program and would be written over; move it or adopt to another place"
            )

    def publish(self, staging: Staging, manifest: Manifest, report: Progress) -> None:  # noqa: ARG002 - two renames
        """The manifest comes last: without it the folder is no dataset."""
        self.refuse_occupied()
        for name in (manifest.index.file, MANIFEST_NAME):
            (staging.dataset / name).replace(self.folder / name)
            sync_folder(self.folder)
        staging.dataset.rmdir()

    def __str__(self) -> str:
        return str(self.folder)


def _destination(out: str, raw: Path) -> Destination:
    folder = parse_location(out).folder
    in_place = folder is not None and folder.resolve() == raw.resolve()
    return _InPlace(raw) if in_place else open_destination(out)


def _is_index(path: Path) -> bool:
    """Whether an earlier adoption has written the file."""
    try:
        return bool(pq.read_schema(path).equals(INDEX_SCHEMA))
    except (OSError, pa.ArrowException):
        return False


def _classes(kind: str, raw: Path) -> RawDataset:
    """The classes that the labels are taken to be, without samples."""
    if kind == "synthetic":
        raise DataError("dataset 'synthetic' has no shards made elsewhere; name the dataset whose classes they hold")
    if kind == "pascal_context_59":
        table = classes_59()
    elif kind != "folder":
        table = class_table(kind)
    else:
        table = read_classes(raw / _CLASS_FILE)
        if table.label_map:
            raise DataError(
                f"{raw / _CLASS_FILE}: label_map cannot be used on adopted shards, whose masks must hold final labels "
                "because nothing is rewritten; remove it, or prepare the dataset from its raw pictures"
            )
    # The known tables map raw labels. Masks in shards are beyond that.
    final = table.model_copy(update={"label_map": None})
    return final.dataset(raw.resolve().name if kind == "folder" else kind, {})


def _shard_paths(raw: Path) -> list[tuple[Path, str]]:
    """Shards and their splits, in the order of split and number."""
    names = sorted(path.name for path in raw.iterdir() if not path.name.startswith("."))
    wrong = [
        f"{name}: compressed, so no sample in it can be reached; unpack it to .tar"
        for name in names
        if name.lower().endswith(_COMPRESSED)
    ]
    placed: list[tuple[str, int, str]] = []
    for name in (name for name in names if name.endswith(".tar")):
        match = _NUMBERED.fullmatch(name.removesuffix(".tar"))
        split = match["split"] if match else name.removesuffix(".tar")
        if not (raw / name).is_file():
            wrong.append(f"{name}: not a file")
        elif not SHARD_NAME.fullmatch(name):
            wrong.append(f"{name!r}: no name for a shard; use letters, digits, '.', '_' and '-'")
        elif not JOB_NAME.fullmatch(split):
            wrong.append(f"{name}: {split!r} cannot name a split; use a-z, 0-9, '.', '_' and '-'")
        else:
            placed.append((split, int(match["number"]) if match else 0, name))
    if wrong:
        raise listed(f"{raw} holds shards that cannot be used", wrong)
    if not placed:
        raise DataError(f"{raw} holds no .tar file; give the folder that holds the shards")
    return [(raw / name, split) for split, _, name in sorted(placed)]


def _read_headers(paths: Sequence[tuple[Path, str]]) -> tuple[list[_Found], list[str]]:
    """What all shards hold, by their headers alone, and a line for everything that is damaged or not clear."""
    found: list[_Found] = []
    problems: list[str] = []
    places: dict[str, list[str]] = defaultdict(list)
    for path, split in paths:
        try:
            paired = pair_members(walk_tar(path))
        except DataError as error:
            problems.append(str(error))
            continue
        found.append(_Found(path, split, paired))
        problems += [f"shard {path.name!r}, {line}" for line in paired.problems]
        if not paired.keys and not paired.problems:
            problems.append(f"shard {path.name!r} holds no sample; remove it")
        for key in paired.keys:
            places[key].append(path.name)
    problems += [
        f"key {key!r} is in {' and in '.join(shards)}: two samples, or one that was cut apart; it must be in one shard"
        for key, shards in places.items()
        if len(shards) > 1
    ]
    return found, problems


def _tasks(found: Sequence[_Found], rules: LabelRules, staging: Staging) -> list[AdoptTask]:
    staging.keep_only({shard.path.name for shard in found})
    return [
        AdoptTask(shard.path, staging.record(shard.path.name), shard.split, shard.paired.samples, rules)
        for shard in found
        if shard.paired.samples
    ]


def _by_split(tasks: Sequence[AdoptTask]) -> dict[str, list[AdoptTask]]:
    splits: dict[str, list[AdoptTask]] = {}
    for task in tasks:
        splits.setdefault(task.split, []).append(task)
    return splits


def _refusal(classes: RawDataset, found: Sequence[_Found], problems: Sequence[str]) -> DataError:
    splits: dict[str, list[RawSample]] = {}
    for shard in found:
        splits.setdefault(shard.split, []).extend(raw_sample(shard.path, sample) for sample in shard.paired.samples)
    error = listed(
        "shards cannot be adopted as they are (masks must hold final labels, nothing is rewritten); mend them, or "
        "prepare the dataset from its raw pictures",
        problems,
    )
    advice = "".join(f"\nprobably: {line}" for line in explain(replace(classes, splits=splits)))
    return DataError(f"{error}{advice}")
