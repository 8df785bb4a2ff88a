"""Checkpoints: written beside, flushed, hashed, renamed; read only after their hashes hold.

A checkpoint is a folder `step-00001000` with model.safetensors, state.safetensors (optimiser and random states) and
meta.json, which holds the other files' SHA-256. The digest of meta.json therefore stands for the whole. The pointer to
the latest one is a row of the queue's database, moved only by the attempt that holds the job.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from segfleet.errors import CheckpointError

FORMAT = 1
_MODEL, _STATE, _META = "model.safetensors", "state.safetensors", "meta.json"
KEEP_LATEST = 2


@dataclass(frozen=True, slots=True)
class CheckpointRecord:
    """The pointer's value.

    Attributes:
        path: Absolute folder.
        step: Optimiser steps done.
        sha256: Digest of meta.json.
        bytes: Size of all files.
        best_step: Step of the best checkpoint so far, or None before the first validation.
    """

    path: str
    step: int
    sha256: str
    bytes: int
    best_step: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """As plain data for the service."""
        return asdict(self)

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> CheckpointRecord:
        """The reverse of `to_dict`."""
        return cls(**{name: document.get(name) for name in cls.__dataclass_fields__})  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A verified checkpoint in memory.

    Attributes:
        sha256: Digest of meta.json, which stands for the whole.
    """

    path: Path
    step: int
    sha256: str
    model: dict[str, Tensor]
    state: dict[str, Tensor]
    meta: dict[str, Any]


def optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimiser's state as named tensors, `optimizer/<parameter>/<slot>`: its own, which the next step changes."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {
        f"optimizer/{names[id(parameter)]}/{slot}": value.detach()
        for parameter, slots in optimizer.state.items()
        for slot, value in slots.items()
        if isinstance(value, Tensor)
    }


def restore_optimizer(model: nn.Module, optimizer: torch.optim.Optimizer, state: Mapping[str, Tensor]) -> None:
    """Put back what `optimizer_tensors` took.

    Raises:
        CheckpointError: the checkpoint has state of a parameter that the model does not have.
    """
    parameters = dict(model.named_parameters())
    for key, value in state.items():
        if not key.startswith("optimizer/"):
            continue
        _, name, slot = key.split("/")
        if name not in parameters:
            raise CheckpointError(f"the checkpoint has optimiser state of {name!r}, which this model does not have")
        # Fused optimisers want all of it on the device, and slots laid out in memory like the parameter.
        parameter = parameters[name]
        target = torch.empty_like(value, device=parameter.device) if slot == "step" else torch.empty_like(parameter)
        optimizer.state[parameter][slot] = target.detach().copy_(value)


def save_checkpoint(
    folder: Path, step: int, model: Mapping[str, Tensor], state: Mapping[str, Tensor], meta: Mapping[str, Any]
) -> CheckpointRecord:
    """Write a checkpoint so that a folder of its final name is always whole.

    Args:
        folder: The attempt's checkpoint folder.
        step: Optimiser steps done.
        model: The model's tensors.
        state: Everything else that is a tensor.
        meta: Everything else that is plain data.

    Raises:
        OSError: no space or no right to write; nothing of this checkpoint stays, older ones are untouched.
    """
    final = folder / f"step-{step:08d}"
    staging = folder / f".writing-{step:08d}-{os.getpid()}"
    shutil.rmtree(staging, ignore_errors=True)
    try:
        staging.mkdir(parents=True)
        for name, tensors in ((_MODEL, model), (_STATE, state)):
            _save_tensors({key: value.contiguous() for key, value in tensors.items()}, staging / name)
        hashes = {name: _sha256(staging / name) for name in (_MODEL, _STATE)}
        document = {**meta, "format": FORMAT, "step": step, "files": hashes}
        text = json.dumps(document, indent=1, sort_keys=True)
        (staging / _META).write_text(text, encoding="utf-8")
        size = sum(_flush(staging / name) for name in (_MODEL, _STATE, _META))
        _flush(staging)
        if final.exists():
            # A resumed attempt redoes steps; the bytes are the same, but a damaged older copy must not survive.
            shutil.rmtree(final)
        staging.rename(final)
        _flush(folder)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise
    best = meta.get("best") or {}
    digest = hashlib.sha256(text.encode()).hexdigest()
    return CheckpointRecord(str(final), step, digest, size, best.get("step"))


def load_checkpoint(path: Path, sha256: str | None = None) -> Checkpoint:
    """Read a checkpoint after checking every hash.

    Args:
        path: A folder written by `save_checkpoint`.
        sha256: Expected digest of meta.json; None if only the inner hashes are to be checked.

    Raises:
        CheckpointError: missing or damaged; names the file.
    """
    try:
        content = (path / _META).read_bytes()
        found = hashlib.sha256(content).hexdigest()
        if sha256 is not None and found != sha256:
            raise CheckpointError(f"checkpoint {str(path)!r}: {_META} differs from what the job recorded")
        meta = json.loads(content)
        for name, expected in meta["files"].items():
            if _sha256(path / name) != expected:
                raise CheckpointError(f"checkpoint {str(path)!r}: {name} is damaged (its SHA-256 differs)")
        return Checkpoint(path, int(meta["step"]), found, load_file(path / _MODEL), load_file(path / _STATE), meta)
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"checkpoint {str(path)!r} cannot be read: {error}") from error


def load_latest(job_folder: Path, pointer: CheckpointRecord | None) -> tuple[Checkpoint | None, list[str]]:
    """The pointer's checkpoint, or the newest older one whose hashes hold.

    Args:
        job_folder: Holds the attempts' folders.
        pointer: The job's recorded checkpoint; None for a job that has none.

    Returns:
        The checkpoint (None only without a pointer) and what was found damaged on the way.

    Raises:
        CheckpointError: there was a checkpoint, but none is whole; training never starts over in silence.
    """
    if pointer is None:
        return None, []
    damaged = []
    try:
        return load_checkpoint(Path(pointer.path), pointer.sha256), []
    except CheckpointError as error:
        damaged.append(str(error))
    older = [
        path for path in job_folder.glob("*/step-*") if _step_of(path) <= pointer.step and path != Path(pointer.path)
    ]
    for path in sorted(older, key=_step_of, reverse=True):
        try:
            return load_checkpoint(path), damaged
        except CheckpointError as error:
            damaged.append(str(error))
    raise CheckpointError(
        "no whole checkpoint is left: " + "; ".join(damaged) + "; 'segfleet retry --from-start' begins again"
    )


def prune(job_folder: Path, record: CheckpointRecord, latest: int = KEEP_LATEST) -> None:
    """Delete checkpoints that are neither among the latest few nor the best, and left-overs of broken writes.

    Touches the folders of this attempt and of earlier ones only: an attempt that was overtaken while it slept may not
    delete what its successor has written.
    """
    own = Path(record.path).parent
    attempts = [
        path for path in job_folder.iterdir() if path.is_dir() and _attempt_number(path) <= _attempt_number(own)
    ]
    folders = [path for attempt in attempts for path in attempt.glob("step-*")]
    steps = sorted({_step_of(path) for path in folders if _step_of(path) <= record.step}, reverse=True)
    kept = {*steps[:latest], record.best_step}
    for path in folders:
        if _step_of(path) not in kept and path != Path(record.path):
            shutil.rmtree(path, ignore_errors=True)
    for path in (path for attempt in attempts for path in attempt.glob(".writing-*")):
        shutil.rmtree(path, ignore_errors=True)


def discard_earlier(job_folder: Path, attempt_folder: Path) -> None:
    """Delete the checkpoints of earlier attempts: the job begins again, nothing may fall back to what it has left."""
    for path in job_folder.glob("*/step-*"):
        if _attempt_number(path.parent) < _attempt_number(attempt_folder):
            shutil.rmtree(path, ignore_errors=True)


def find_step(job_folder: Path, step: int) -> Path | None:
    """Folder of a kept checkpoint by its step; the latest attempt's, if several wrote it."""
    return max(job_folder.glob(f"*/step-{step:08d}"), key=lambda path: _attempt_number(path.parent), default=None)


def _attempt_number(folder: Path) -> int:
    """N of an attempt's folder, `JOB-aN`."""
    number = folder.name.rpartition("a")[2]
    return int(number) if number.isdecimal() else 0


def _save_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    try:
        save_file(tensors, path)
    except SafetensorError as error:
        # The library hides the system's error number behind a class of its own.
        raise OSError(errno.EIO, str(error)) from error


def _step_of(path: Path) -> int:
    return int(path.name.removeprefix("step-"))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _flush(path: Path) -> int:
    """Force a file or folder to disk; its size in bytes."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
        return os.fstat(descriptor).st_size
    finally:
        os.close(descriptor)
