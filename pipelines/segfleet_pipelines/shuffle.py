"""The order in which one dataset's samples are drawn, for ever: its epochs one after the other, each shuffled.

Draw q belongs to epoch q // N, which is a permutation of all N samples that the training uses: of the whole split, or
of a share of it that is chosen once, by nothing but the number of samples. The shuffle is over the whole epoch, or
within windows: the epoch's shards are shuffled, cut into windows of W shards, and the samples shuffled inside each
window, so that only one window's shards are needed at a time.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

Numbers = npt.NDArray[np.uint32]

# Separate streams: without them the order of an epoch and the augmentation of a sample could share their randomness.
_ORDER, _AUGMENT, _SHARDS, _WINDOW, _SLOTS, _SHARE = range(6)


def sample_rng(seed: int, epoch: int, index: int, dataset: int = 0) -> np.random.Generator:
    """The randomness of one sample's augmentation in one of its dataset's epochs."""
    return np.random.Generator(_bits(seed, _AUGMENT, epoch, index, dataset=dataset))


def slot_order(seed: int, step: int, num_slots: int) -> Numbers:
    """A permutation of the slots of one mixed batch."""
    return _permutation(num_slots, _bits(seed, _SLOTS, step))


def num_used(num_samples: int, share: float) -> int:
    """Samples of a share, rounded to the nearest whole number, at least one."""
    # As it is written in decimals: 0.35 of 10 is 3.5, where the nearest binary fraction of 0.35 gives less.
    return max(1, math.floor(num_samples * Fraction(str(share)) + Fraction(1, 2)))


def used_samples(num_samples: int, share: float) -> Numbers:
    """Which samples of a split a share of it holds, ascending.

    The same for every seed, so that trainings which differ in their seed differ in nothing else; a smaller share is
    part of every larger one.
    """
    return np.sort(_permutation(num_samples, _bits(0, _SHARE))[: num_used(num_samples, share)])


class SampleOrder:
    """All draws of one dataset, as a pure function of what it is made of.

    Attributes:
        num_samples: N, those that are used.
    """

    def __init__(
        self,
        shard_counts: Sequence[int],
        seed: int,
        dataset: int = 0,
        window: int | None = None,
        share: float = 1.0,
    ) -> None:
        """Describe an order; nothing is drawn yet.

        Args:
            shard_counts: Samples of each shard, in the order of the samples' indexes.
            seed: 0 or greater.
            dataset: Number of the dataset in its mix; each has its own randomness.
            window: W, shards; None, or as many as there are, shuffles globally.
            share: Of the samples to use, above 0; shards that hold none of them are not touched.
        """
        self._arguments = (tuple(shard_counts), seed, dataset, window, share)
        self._used = used_samples(sum(shard_counts), share) if share < 1 else None
        counts = np.array(shard_counts, np.int64)
        if self._used is not None:
            counts = np.diff(np.searchsorted(self._used, np.cumsum(counts)), prepend=0)
        self._numbers = np.flatnonzero(counts)  # of the shards that are used
        self._counts = counts[self._numbers]
        self._first = np.cumsum(self._counts) - self._counts  # sample of each shard
        self.num_samples = int(self._counts.sum())
        self._width = min(window or len(self._counts), len(self._counts))
        self._num_windows = -(-len(self._counts) // self._width)
        # Caches of its own, two places each: a batch may lie across two windows, and must not push out those of others.
        self._shards = lru_cache(maxsize=2)(self._draw_shards)
        self._window = lru_cache(maxsize=2)(self._draw_window)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), self._arguments

    def locate(self, draw: int) -> tuple[int, int]:
        """Epoch and sample index of a draw."""
        epoch, window, place = self._find(draw)
        sample = int(self._window(epoch, window)[place])
        return epoch, sample if self._used is None else int(self._used[sample])

    def shards(self, first: int, stop: int, ahead: int = 0) -> list[int]:
        """The shards of all windows that the draws first .. stop - 1 touch, and of `ahead` windows after them.

        Returns:
            Numbers of the shards, each once, in the order in which they are needed; with a global shuffle all that are
            used.
        """
        begin, end = (epoch * self._num_windows + window for epoch, window, _ in map(self._find, (first, stop - 1)))
        needed: dict[int, None] = {}
        for number in range(begin, end + ahead + 1):
            epoch, window = divmod(number, self._num_windows)
            needed |= dict.fromkeys(self._numbers[self._window_shards(epoch, window)].tolist())
        return list(needed)

    def _find(self, draw: int) -> tuple[int, int, int]:
        """Epoch, window and place in the window."""
        epoch, offset = divmod(draw, self.num_samples)
        starts = self._shards(epoch)[1]
        window = int(np.searchsorted(starts, offset, side="right")) - 1
        return epoch, window, offset - int(starts[window])

    def _window_shards(self, epoch: int, window: int) -> Numbers:
        return self._shards(epoch)[0][window * self._width : (window + 1) * self._width]

    def _draw_shards(self, epoch: int) -> tuple[Numbers, npt.NDArray[np.int64]]:
        """An epoch's order of shards, and the first draw of each window."""
        seed, dataset = self._arguments[1:3]
        shards = np.arange(len(self._counts), dtype=np.uint32)
        if self._num_windows > 1:
            shards = _permutation(len(shards), _bits(seed, _SHARDS, epoch, dataset=dataset))
        counts = self._counts[shards]
        return shards, (np.cumsum(counts) - counts)[:: self._width]

    def _draw_window(self, epoch: int, window: int) -> Numbers:
        """A window's samples in the order of their draws."""
        seed, dataset = self._arguments[1:3]
        if self._num_windows == 1:
            return _permutation(self.num_samples, _bits(seed, _ORDER, epoch, dataset=dataset))
        spans = ((self._first[shard], self._counts[shard]) for shard in self._window_shards(epoch, window))
        samples = np.concatenate([np.arange(first, first + count, dtype=np.uint32) for first, count in spans])
        order: Numbers = samples[_permutation(len(samples), _bits(seed, _WINDOW, epoch, window, dataset=dataset))]
        return order


def _bits(seed: int, *place: int, dataset: int = 0) -> np.random.PCG64:
    # The first dataset has no number in its keys, so that its order does not change when others are mixed in.
    return np.random.PCG64(np.random.SeedSequence(seed, spawn_key=(*place, dataset) if dataset else place))


def _permutation(size: int, bits: np.random.PCG64) -> Numbers:
    # Sorting raw bits, not Generator.permutation: numpy promises the bits of a bit generator for ever, the methods of
    # a Generator only within a release. Equal keys keep their order, so the result is a permutation in any case.
    return np.argsort(bits.random_raw(size), kind="stable").astype(np.uint32)
