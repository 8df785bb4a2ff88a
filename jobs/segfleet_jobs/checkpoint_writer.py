"""Checkpoints written while the training goes on: a copy in host memory, and a thread that brings it to the disk.

The thread writes, flushes, reads back and renames, then moves the pointer, then prunes, in this order: wherever it is
killed, the pointer names a whole checkpoint. At most one is under way; who begins another waits for it. A disk that is
full or a store that is away is told of and tried again for a while: the copy is safe in memory, and training goes on
until the next checkpoint is due.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Event
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from segfleet.errors import CheckpointError, DataError
from segfleet_jobs.checkpoint import CheckpointRecord
from segfleet_jobs.checkpoint_store import CheckpointStore, prune

# Together below the grace that an attempt has which was asked to make room.
PAUSES_S = (1.0, 2.0, 4.0, 8.0, 15.0, 30.0)


class HostCopy:
    """A copy of tensors in host memory, pinned where they come from a GPU; the next copy uses the same memory."""

    def __init__(self) -> None:
        self._buffers: dict[str, Tensor] = {}

    def take(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Copy; returns when the tensors may change again. What the copy before returned is overwritten."""
        devices = {tensor.device for tensor in tensors.values() if tensor.is_cuda}
        self._buffers = {name: self._copied(name, tensor) for name, tensor in tensors.items()}
        for device in devices:
            torch.cuda.current_stream(device).synchronize()
        return self._buffers

    def _copied(self, name: str, tensor: Tensor) -> Tensor:
        buffer = self._buffers.get(name)
        if buffer is None or buffer.shape != tensor.shape or buffer.dtype != tensor.dtype:
            buffer = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
        return buffer.copy_(tensor.detach(), non_blocking=True)


class CheckpointWriter:
    """Writes the checkpoints of one attempt; a context that is not left before the last one is done.

    Args:
        store: Where they go.
        publish: Moves the pointer; called by the thread that writes.
        tell: Has the job's history tell of a checkpoint that cannot be written yet, or was found damaged; called by
            the same thread.
        pauses_s: Before each further try of one that could not be written; after the last the training fails.
    """

    def __init__(
        self,
        store: CheckpointStore,
        publish: Callable[[CheckpointRecord], None],
        tell: Callable[[str], None],
        pauses_s: Sequence[float] = PAUSES_S,
    ) -> None:
        self._store, self._publish, self._tell, self._pauses_s = store, publish, tell, tuple(pauses_s)
        self._model, self._state = HostCopy(), HostCopy()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: Future[CheckpointRecord] | None = None
        self._is_failing = Event()

    def __enter__(self) -> CheckpointWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if error is not None:
            self._is_failing.set()
        try:
            self.collect(wait=True)
        except Exception as late:
            if error is None:
                raise
            # What ended the training is told; this comes on top of it.
            print(f"segfleet: the last checkpoint was not written: {late}", flush=True)
        finally:
            self._thread.shutdown()

    def start(
        self, step: int, model: Mapping[str, Tensor], state: Mapping[str, Tensor], meta: Mapping[str, Any]
    ) -> None:
        """Begin to write a checkpoint; waits for the copy in memory, not for the disk.

        Args:
            step: Optimiser steps done.
            model: The model's tensors, on any device.
            state: Everything else that is a tensor.
            meta: Everything else that is plain data; may not change afterwards.

        Raises:
            RuntimeError: the one before is not collected.
        """
        if self._pending is not None:
            raise RuntimeError("the checkpoint before is not collected")
        copies = self._model.take(model), self._state.take(state)
        self._pending = self._thread.submit(self._write, step, *copies, meta)

    def collect(self, *, wait: bool = False) -> CheckpointRecord | None:
        """What was written since the last call, with its pointer moved; None: nothing is, or is not yet.

        Args:
            wait: For the one under way.

        Raises:
            CheckpointError: it cannot be written.
            SegfleetError: the service refused the pointer, or stayed away.
        """
        if self._pending is None or not (wait or self._pending.done()):
            return None
        pending, self._pending = self._pending, None
        return pending.result()

    def _write(
        self, step: int, model: Mapping[str, Tensor], state: Mapping[str, Tensor], meta: Mapping[str, Any]
    ) -> CheckpointRecord:
        record = self._save(step, model, state, meta)
        # The pointer first: what it leaves behind may be deleted only once it has moved.
        self._publish(record)
        try:
            for message in prune(self._store, record):
                self._tell(f"deleted: {message}")
        except (OSError, DataError) as error:
            # The next one does it.
            print(f"segfleet: older checkpoints are not deleted: {error}", flush=True)
        return record

    def _save(
        self, step: int, model: Mapping[str, Tensor], state: Mapping[str, Tensor], meta: Mapping[str, Any]
    ) -> CheckpointRecord:
        for number in itertools.count():
            try:
                return self._store.save(step, model, state, meta)
            except (OSError, DataError) as error:
                reason = getattr(error, "strerror", None) or error
                what = f"the checkpoint of step {step} cannot be written to {self._store.home!r}: {reason}"
                if number == len(self._pauses_s) or self._is_failing.is_set():
                    raise CheckpointError(
                        f"{what}; earlier checkpoints are untouched: make room, then 'segfleet retry' goes on from "
                        "the last one"
                    ) from error
                if number == 0:
                    self._tell(f"{what}; it is tried again for {sum(self._pauses_s):.0f} s, training goes on meanwhile")
            self._is_failing.wait(self._pauses_s[number])
        raise AssertionError("never counts to an end")
