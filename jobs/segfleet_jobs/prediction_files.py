"""The files that a prediction leaves: whole or not at all, and never in the place of somebody else's."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from segfleet.errors import DataError
from segfleet_jobs.prediction_inputs import Targets
from segfleet_pipelines.photo import unbounded

# Keyword of the PNG text in which a mask names the model that made it.
MODEL_KEYWORD = "segfleet model"
# After so many bytes the pages of a file of probabilities are given back to the system.
_MAPPED_BYTES = 2**26


def made_by(mask: Path) -> str | None:
    """The model that made a mask; None for any other file."""
    try:
        # Only the head is read; a mask may be as large as the largest picture.
        with unbounded(), Image.open(mask, formats=("PNG",)) as image:
            return image.info.get(MODEL_KEYWORD)
    except (OSError, ValueError, SyntaxError):
        return None  # somebody's file


def is_done(targets: Targets, model: str) -> bool:
    """Whether all results are there, made by this model."""
    return len(targets.existing()) == len(targets.wanted()) and made_by(targets.mask) == model


def refuse_strangers(targets: Targets) -> None:
    """Make sure that only results of earlier predictions are overwritten.

    Raises:
        DataError: a file is there that none has made, as far as one can see.
    """
    existing = targets.existing()
    if existing and made_by(targets.mask) is None:
        raise DataError(f"{str(existing[0])!r} exists and is no result of 'segfleet predict'; choose another --out")


@contextmanager
def written_whole(target: Path) -> Iterator[Path]:
    """A place beside `target` to write to, renamed to it at the end; after an error nothing is left of it.

    Raises:
        DataError: the folder cannot be written to, or the disk is full.
    """
    staged = target.with_name(f".{os.getpid()}-{target.name}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        yield staged
        staged.replace(target)
    except OSError as error:
        reason = error.strerror or error
        raise DataError(f"{str(target)!r} cannot be written: {reason}; make room or choose another --out") from error
    finally:
        with suppress(OSError):  # what went wrong above is what is to be said
            staged.unlink()


class ProbabilityFile:
    """A float16 .npy of (K, H, W), written part by part: never in memory as a whole.

    Args:
        path: The file to make.
        num_classes: K.
        size: (H, W).

    Raises:
        OSError: no room for it; said before anything is computed for it.
    """

    def __init__(self, path: Path, num_classes: int, size: tuple[int, int]) -> None:
        shape = (num_classes, *size)
        # A mapped file that outgrows the disk would kill the process, so that its room is taken at once.
        with path.open("wb") as file:
            np.lib.format.write_array_header_1_0(
                file,
                {"descr": np.lib.format.dtype_to_descr(np.dtype(np.float16)), "fortran_order": False, "shape": shape},
            )
            os.posix_fallocate(file.fileno(), file.tell(), 2 * int(np.prod(shape)))
        self._values: NDArray[np.float16] = np.lib.format.open_memmap(path, mode="r+")
        self._num_waiting = 0

    def take(self, rows: slice, columns: slice, probabilities: Tensor) -> None:
        """Write the probabilities (rows, columns, K) of a part of the picture."""
        self._values[:, rows, columns] = probabilities.permute(2, 0, 1).half().cpu().numpy()
        self._num_waiting += 2 * probabilities.numel()
        if self._num_waiting >= _MAPPED_BYTES:
            self._release()

    def close(self) -> None:
        """Write what is left."""
        self._release()
        del self._values

    def _release(self) -> None:
        pages = self._values._mmap  # type: ignore[attr-defined]
        pages.flush()
        pages.madvise(mmap.MADV_DONTNEED)
        self._num_waiting = 0
