"""Prepared datasets that jobs have made or read: what their manifests say, and what `segfleet inspect` finds."""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field, ValidationError

from segfleet.queue.model import Job
from segfleet.settings import bare_environment
from segfleet.spec.location import split_location

# Jobs that are looked through, the newest first.
MOST_JOBS = 1000
_MANIFEST = "manifest.json"
# Bytes; ten thousand shards make two million.
_LARGEST_MANIFEST = 64 * 1024**2
_MOST_KEPT = 100
_MOST_ASKED = 20
_INSPECT_S = 300.0
# After this, what may have passed is tried again.
_FAILED_S = 60.0
_log = logging.getLogger(__name__)


class ShardSketch(BaseModel):
    """Of a manifest's shard, what a page shows."""

    bytes: int = Field(ge=0)


class SplitSketch(BaseModel):
    """Of a manifest's split, what a page shows."""

    num_samples: int = Field(ge=0)
    shards: list[ShardSketch]

    @property
    def bytes(self) -> int:
        """Of all shards."""
        return sum(shard.bytes for shard in self.shards)


class Sketch(BaseModel):
    """Of a manifest, what a page shows; whoever reads the data checks all of it."""

    content_id: str = Field(pattern=r"^[0-9a-f]{64}$")
    name: str
    class_names: list[str]
    palette: list[tuple[int, int, int]]
    splits: dict[str, SplitSketch]

    @property
    def num_samples(self) -> int:
        """Of all splits."""
        return sum(split.num_samples for split in self.splits.values())

    @property
    def bytes(self) -> int:
        """Of all shards."""
        return sum(split.bytes for split in self.splits.values())


@dataclass(frozen=True, slots=True)
class Use:
    """A job that names a dataset.

    Attributes:
        job: Newest first in a dataset's list.
        makes: It writes the dataset; others read it.
    """

    job: Job
    makes: bool


@dataclass(frozen=True, slots=True)
class Dataset:
    """A place that jobs have named as a prepared dataset.

    Attributes:
        id: Of the page; made of the location.
        location: As in the specs.
        sketch: What the manifest says; None: see `trouble`.
        trouble: Why there is no sketch.
        uses: The jobs, newest first.
    """

    id: str
    location: str
    sketch: Sketch | None
    trouble: str
    uses: tuple[Use, ...]


def datasets(jobs: Iterable[Job]) -> list[Dataset]:
    """All datasets that these jobs name, in the order of their latest job.

    Args:
        jobs: Newest first.
    """
    return [_dataset(location, uses) for location, uses in _uses(jobs).items()]


def dataset(jobs: Iterable[Job], dataset_id: str) -> Dataset | None:
    """The one of this id, if these jobs name it.

    Args:
        jobs: Newest first.
        dataset_id: As in `Dataset.id`.
    """
    found = _uses(jobs)
    return next((_dataset(location, found[location]) for location in found if id_of(location) == dataset_id), None)


def _uses(jobs: Iterable[Job]) -> dict[str, list[Use]]:
    found: dict[str, list[Use]] = {}
    for job in jobs:
        for location, makes in _named(job.spec):
            found.setdefault(location, []).append(Use(job, makes))
    return found


def _dataset(location: str, uses: Sequence[Use]) -> Dataset:
    return Dataset(id_of(location), location, *_sketch(location), tuple(uses))


def id_of(location: str) -> str:
    """Of a dataset's page."""
    return hashlib.sha256(location.encode()).hexdigest()[:12]


def _named(spec: Mapping[str, Any]) -> set[tuple[str, bool]]:
    """Locations in a spec, and whether its job writes there."""
    if spec["kind"] == "prepare":
        named = {(str(spec["out"]), True)}
        return named | ({(str(spec["base"]), False)} if spec.get("base") else set())
    body = spec["base"] if spec["kind"] == "search" else spec
    data = body.get("data") or {}
    places = [data.get("shards"), *(other["shards"] for other in data.get("mix") or ())]
    return {(str(place), False) for place in places if place}


def _sketch(location: str) -> tuple[Sketch | None, str]:
    """What the manifest says, or why that is not known.

    Only this file system is looked at: a service that fetched any address a spec names would do so for whoever may
    submit one, from inside its network, with its own keys.
    """
    folder = split_location(location).folder
    if folder is None:
        return None, "it lies in another store, which jobs read and the service does not"
    path = folder / _MANIFEST
    try:
        if not path.is_file():
            return None, "nothing prepared is there now"
        status = path.stat()
        if status.st_size > _LARGEST_MANIFEST:
            return None, f"its {_MANIFEST} is larger than any"
        return _read_sketch(path, status.st_mtime_ns, status.st_size), ""
    except OSError as error:
        return None, f"its {_MANIFEST} cannot be read: {error.strerror}"
    except (ValidationError, RecursionError):
        return None, f"its {_MANIFEST} is damaged: 'segfleet verify' tells more"


@functools.lru_cache(maxsize=200)
def _read_sketch(path: Path, _modified_ns: int, _size: int) -> Sketch:
    return Sketch.model_validate_json(path.read_bytes())


@dataclass(frozen=True, slots=True)
class Inspection:
    """What is known of a dataset's content.

    Attributes:
        state: `looking` | `there` | `failed`.
        summary: As `segfleet inspect --json` prints it.
        trouble: Why it failed.
    """

    state: str
    summary: Mapping[str, Any] | None = None
    trouble: str = ""


class Inspections:
    """Has `segfleet inspect` look at one dataset after the other, in the background, once for each content.

    Args:
        folder: Keeps what was found, by content id: a hundred of them, the oldest go first.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self._lock = folder, threading.Lock()
        self._asked: set[str] = set()
        self._failed: OrderedDict[tuple[str, str], tuple[float, str]] = OrderedDict()
        # One at a time: pages can wait, trainings on the same machine should not.
        self._turn = threading.Lock()

    def of(self, location: str, content_id: str) -> Inspection:
        """What is known now; the first who asks has it looked at.

        Args:
            location: Of a dataset on this file system.
            content_id: From its manifest.
        """
        try:
            summary = json.loads((self._folder / content_id / "summary.json").read_bytes())
            return Inspection("there", summary)
        except (OSError, ValueError):
            pass
        with self._lock:
            failed_at, trouble = self._failed.get((location, content_id), (float("-inf"), ""))
            if time.monotonic() - failed_at < _FAILED_S:
                return Inspection("failed", trouble=trouble)
            if content_id not in self._asked and len(self._asked) < _MOST_ASKED:
                self._asked.add(content_id)
                # The service's end waits for none of them.
                threading.Thread(target=self._inspect, args=(location, content_id), daemon=True).start()
        return Inspection("looking")

    def sheet(self, content_id: str) -> bytes | None:
        """The picture sheet as PNG; None: there is none."""
        try:
            return (self._folder / content_id / "sheet.png").read_bytes()
        except OSError:
            return None

    def _inspect(self, location: str, content_id: str) -> None:
        trouble = ""
        try:
            with self._turn:
                trouble = self._look(location, content_id)
        except (OSError, subprocess.SubprocessError, ValueError) as error:
            _log.warning("dataset %s was not inspected: %s", location, error)
            trouble = f"it was not inspected: {error}"
        with self._lock:
            self._asked.discard(content_id)
            if trouble:
                self._failed.pop((location, content_id), None)
                self._failed[location, content_id] = time.monotonic(), trouble
                if len(self._failed) > _MOST_KEPT:
                    self._failed.popitem(last=False)

    def _look(self, location: str, content_id: str) -> str:
        """Inspect and keep; what went wrong, if anything did."""
        self._folder.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=".looking-", dir=self._folder))
        try:
            # The pictures are somebody's: whoever decodes them has no secrets, and less of the processor than jobs.
            command = ["nice", sys.executable, "-P", "-m", "segfleet_pipelines.tool", "inspect", "--json"]
            done = subprocess.run(
                [*command, "--sheet", str(scratch / "sheet.png"), "--", location],
                env=bare_environment({"HOME": str(scratch), "CUDA_VISIBLE_DEVICES": ""}),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=_INSPECT_S,
                check=False,
            )
            if done.returncode != 0:
                said = done.stderr.decode(errors="replace").strip().splitlines()
                return said[-1][:500] if said else f"'segfleet inspect' ended with {done.returncode}"
            summary = json.loads(done.stdout)
            if summary["content_id"] != content_id:
                return "it has changed while it was looked at; load the page again"
            (scratch / "summary.json").write_text(json.dumps(summary), encoding="utf-8")
            scratch.rename(self._folder / content_id)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        self._prune()
        return ""

    def _prune(self) -> None:
        kept = sorted((path for path in self._folder.iterdir() if path.is_dir()), key=lambda path: path.stat().st_mtime)
        for path in kept[:-_MOST_KEPT]:
            shutil.rmtree(path, ignore_errors=True)
