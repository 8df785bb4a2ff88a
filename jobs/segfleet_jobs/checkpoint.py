"""The files of a checkpoint: written, flushed and read back; read again only after their hashes hold.

A checkpoint is a folder `step-00001000` with model.safetensors, state.safetensors (optimiser and random states),
meta.json, which holds the other files' SHA-256, and meta.sha256, which `sha256sum -c` understands. The digest of
meta.json therefore stands for the whole. The pointer to the latest one is a row of the queue's database, moved only by
the attempt that holds the job. Where the folders lie: `segfleet_jobs.checkpoint_store`.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, load_file, save_file
from torch import Tensor, nn

from segfleet.errors import CheckpointError

FORMAT = 2
META = "meta.json"
_MODEL, _STATE, _SEAL = "model.safetensors", "state.safetensors", "meta.sha256"
# Whoever writes them one by one writes meta.json last: without it there is no checkpoint.
FILES = (_MODEL, _STATE, _SEAL, META)


@dataclass(frozen=True, slots=True)
class CheckpointRecord:
    """The pointer's value.

    Attributes:
        path: Where it lies: an absolute folder, or an address in an object store.
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
        path: The folder it was read from; of one from elsewhere a copy, which may be gone.
        address: Where it lies.
        sha256: Digest of meta.json, which stands for the whole.
    """

    path: Path
    address: str
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


def write_checkpoint(
    folder: Path, step: int, model: Mapping[str, Tensor], state: Mapping[str, Tensor], meta: Mapping[str, Any]
) -> tuple[str, int]:
    """Write a checkpoint's files into a folder, flush them and read them back.

    Args:
        folder: Empty, on this machine; nobody takes it for a checkpoint yet.
        step: Optimiser steps done.
        model: The model's tensors.
        state: Everything else that is a tensor.
        meta: Everything else that is plain data.

    Returns:
        The digest of meta.json, which stands for the whole, and the size of all files in bytes.

    Raises:
        OSError: no space, no right to write, or the disk does not give back what it was given.
    """
    hashes = {}
    for name, tensors in ((_MODEL, model), (_STATE, state)):
        whole = {key: value.contiguous() for key, value in tensors.items()}
        _save_tensors(whole, folder / name)
        hashes[name] = _sha256_of_medium(folder / name)
        _compare(whole, folder / name)
    sizes = {name: (folder / name).stat().st_size for name in hashes}
    document = {**meta, "format": FORMAT, "step": step, "files": hashes, "sizes": sizes}
    text = json.dumps(document, indent=1, sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()
    (folder / META).write_text(text, encoding="utf-8")
    (folder / _SEAL).write_text(f"{digest}  {META}\n", encoding="utf-8")
    size = sum(flush(folder / name) for name in FILES)
    flush(folder)
    return digest, size


def check_checkpoint(folder: Path, sha256: str | None = None, address: str | None = None) -> tuple[str, dict[str, Any]]:
    """Check every hash of a checkpoint.

    Args:
        folder: Its files, on this machine.
        sha256: Expected digest of meta.json; None if only the checkpoint's own hashes are to be checked.
        address: Where it lies, for people; None: in the folder.

    Returns:
        The digest of meta.json, and what it holds.

    Raises:
        CheckpointError: missing or damaged; names the file.
    """
    who = f"checkpoint {address or str(folder)!r}"
    try:
        content = (folder / META).read_bytes()
        found = hashlib.sha256(content).hexdigest()
        if sha256 is not None and found != sha256:
            raise CheckpointError(f"{who}: {META} differs from what the job recorded")
        _check_seal(folder, found, who)
        meta = json.loads(content)
        for name, expected in meta["files"].items():
            if _sha256(folder / name) != expected:
                raise CheckpointError(f"{who}: {name} is damaged (its SHA-256 differs)")
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{who} cannot be read: {error}") from error
    return found, meta


def check_sizes(meta: bytes, sizes: Mapping[str, int], address: str) -> None:
    """Check that files have the sizes that a meta.json names, without reading them.

    Raises:
        CheckpointError: one has not, or meta.json makes no sense.
    """
    try:
        expected = json.loads(meta)["sizes"]
        wrong = [name for name, size in expected.items() if sizes.get(name) != size]
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise CheckpointError(f"checkpoint {address!r} cannot be read: {error}") from error
    if wrong:
        raise CheckpointError(f"checkpoint {address!r}: {wrong[0]} is damaged (its size differs)")


def load_checkpoint(folder: Path, sha256: str | None = None, address: str | None = None) -> Checkpoint:
    """Read a checkpoint after checking every hash; arguments as of `check_checkpoint`.

    Raises:
        CheckpointError: missing or damaged; names the file.
    """
    found, meta = check_checkpoint(folder, sha256, address)
    try:
        tensors = _load_tensors(folder / _MODEL), _load_tensors(folder / _STATE)
        return Checkpoint(folder, address or str(folder), int(meta["step"]), found, *tensors, meta)
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise CheckpointError(f"checkpoint {address or str(folder)!r} cannot be read: {error}") from error


def _save_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    try:
        save_file(tensors, path)
    except SafetensorError as error:
        # The library hides the system's error number behind a class of its own.
        raise OSError(errno.EIO, str(error)) from error


def _load_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a file whose bytes are known to be right: what fails here is no damage."""
    try:
        return dict(load_file(path))
    except ValueError:
        # The library could not map the file into memory, as may be when that is short.
        return dict(load(path.read_bytes()))


def _compare(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Make sure that a file holds these very bits."""
    try:
        stored = _load_tensors(path)
    except SafetensorError as error:
        raise OSError(errno.EIO, f"{path.name} does not hold what was written: {error}") from error
    wrong = [name for name, tensor in tensors.items() if not torch.equal(_bits(tensor), _bits(stored[name]))]
    if wrong:
        raise OSError(errno.EIO, f"{path.name} does not hold what was written: {wrong[0]}")


def _bits(tensor: Tensor) -> Tensor:
    return tensor.reshape(-1).view(torch.uint8)


def _check_seal(folder: Path, found: str, who: str) -> None:
    """The digest beside meta.json; checkpoints of format 1 have none."""
    try:
        seal = (folder / _SEAL).read_bytes()
    except FileNotFoundError:
        if json.loads((folder / META).read_bytes()).get("format") == 1:
            return
        raise
    if seal != f"{found}  {META}\n".encode():
        raise CheckpointError(f"{who}: {META} is damaged (it and {_SEAL} do not agree)")


def _sha256_of_medium(path: Path) -> str:
    """As the disk has it, not as the system's memory remembers it, where the system can be asked to forget."""
    flush(path)
    with path.open("rb") as file:
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def flush(path: Path) -> int:
    """Force a file or folder to disk; its size in bytes."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
        return os.fstat(descriptor).st_size
    finally:
        os.close(descriptor)
