"""Which sample stands where: the order of training as a pure function of seed, step and slot.

Position p = global_step * global_batch + slot counts all samples ever drawn. Epoch p // N is a permutation of all N
samples, and position p takes its (p % N)-th. Nothing else enters: not the number of workers, loader processes, shards
or restarts. A batch may lie across two epochs.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

# Separate streams: without them the order of an epoch and the augmentation of a sample could share their randomness.
_ORDER, _AUGMENT = 0, 1


@dataclass(frozen=True, slots=True)
class SampleRef:
    """One place of a global batch and the sample that stands there.

    Attributes:
        epoch: How many times every sample has been drawn before, from 0.
        index: Of the sample in its split, 0..N-1.
        slot: Place in the global batch, 0..global_batch-1.
    """

    epoch: int
    index: int
    slot: int


def batch_plan(
    seed: int, num_samples: int, global_step: int, global_batch: int, rank: int, world_size: int
) -> list[SampleRef]:
    """The samples of one rank's part of one global batch, in slot order.

    Rank r of R takes the slots [r * B / R, (r + 1) * B / R) of a global batch of B.

    Args:
        seed: Of the order; 0 or greater.
        num_samples: N, samples in the split.
        global_step: Optimiser step, from 0.
        global_batch: B, samples a step over all ranks.
        rank: 0..world_size-1.
        world_size: R, a divisor of B.

    Raises:
        ValueError: the ranks do not divide the batch, or a number is out of range.
    """
    if num_samples < 1 or global_step < 0 or global_batch < 1 or not 0 <= rank < world_size:
        raise ValueError(
            f"no plan for {num_samples} samples, step {global_step}, batch {global_batch}, rank {rank} of {world_size}"
        )
    if global_batch % world_size:
        raise ValueError(f"a global batch of {global_batch} cannot be shared equally by {world_size} ranks")
    share = global_batch // world_size
    return [
        _sample_at(seed, num_samples, global_step * global_batch + slot, slot)
        for slot in range(rank * share, (rank + 1) * share)
    ]


def sample_rng(seed: int, epoch: int, index: int) -> np.random.Generator:
    """The randomness of one sample's augmentation in one epoch."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed, spawn_key=(_AUGMENT, epoch, index))))


def _sample_at(seed: int, num_samples: int, position: int, slot: int) -> SampleRef:
    epoch, offset = divmod(position, num_samples)
    return SampleRef(epoch, int(_epoch_order(seed, num_samples, epoch)[offset]), slot)


@lru_cache(maxsize=4)
def _epoch_order(seed: int, num_samples: int, epoch: int) -> npt.NDArray[np.intp]:
    # Sorting raw bits, not Generator.permutation: numpy promises the bits of a bit generator for ever, the methods of
    # a Generator only within a release. Equal keys keep their order, so the result is a permutation in any case.
    bits = np.random.PCG64(np.random.SeedSequence(seed, spawn_key=(_ORDER, epoch))).random_raw(num_samples)
    return np.argsort(bits, kind="stable")
