"""Which sample stands where: the order of training as a pure function of seed, step and slot.

Nothing else enters: not the number of workers, loader processes or restarts. A plan gives each place of each global
batch a dataset and a number of draw; `shuffle` turns a draw into an epoch and a sample.

One dataset: draws follow each other. When its N samples do not fill whole batches of B, the last batch of an epoch is
filled up from the next (`wrap`), stays short (`short`: ceil(N / B) steps an epoch), or is not made (`drop`:
floor(N / B) steps, other samples left out in each epoch).

Several datasets: of the first n places of the whole training, dataset d has its share of n, rounded. So each batch has
its shares but for the rounding, in the long run they are exact, and each dataset goes through epochs of its own. The
slots of a batch are shuffled, or one rank might get all the large pictures.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Literal

import numpy as np
import numpy.typing as npt

from segfleet.errors import DataError
from segfleet_pipelines.shuffle import SampleOrder, slot_order

_HALF = Fraction(1, 2)


@dataclass(frozen=True, slots=True)
class SampleRef:
    """One place of a global batch and the sample that stands there.

    Attributes:
        epoch: How many times every sample of the dataset has been drawn before, from 0.
        index: Of the sample in its split, 0..N-1.
        slot: Place in the global batch, 0..global_batch-1.
        dataset: Its number in the mix, from 0.
    """

    epoch: int
    index: int
    slot: int
    dataset: int = 0


@dataclass(frozen=True, slots=True)
class OrderPlan:
    """The whole order of a training.

    Attributes:
        shard_counts: For each dataset the samples of each of its shards.
        weights: Of the datasets; only their ratios count.
        seed: 0 or greater.
        global_batch: B, samples a step over all ranks.
        last_batch: What happens where B does not divide one dataset's samples; a mix only wraps.
        window: Shards of a shuffle window; None shuffles globally.
        share: Of the first dataset's samples that are used, in (0, 1].

    Raises:
        DataError: `drop` leaves nothing, because there are fewer samples than a batch holds.
        ValueError: a number is out of range, or `short` or `drop` with several datasets.
    """

    shard_counts: tuple[tuple[int, ...], ...]
    weights: tuple[float, ...]
    seed: int
    global_batch: int
    last_batch: Literal["wrap", "short", "drop"] = "wrap"
    window: int | None = None
    share: float = 1.0
    _orders: tuple[SampleOrder, ...] = field(init=False, repr=False, compare=False)
    _ratios: tuple[Fraction, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.global_batch < 1 or self.window == 0 or min(self.weights, default=0) <= 0 or not 0 < self.share <= 1:
            raise ValueError(
                f"no plan for batch {self.global_batch}, window {self.window}, weights {self.weights}, "
                f"share {self.share}"
            )
        if len(self.weights) != len(self.shard_counts) or not all(
            counts and min(counts) for counts in self.shard_counts
        ):
            raise ValueError("no plan without a weight for each dataset and samples in each shard")
        if self.last_batch != "wrap" and len(self.weights) > 1:
            raise ValueError(
                f"last_batch {self.last_batch!r} has no meaning in a mix: its epochs end at different steps"
            )
        orders = tuple(
            SampleOrder(counts, self.seed, dataset, self.window, 1.0 if dataset else self.share)
            for dataset, counts in enumerate(self.shard_counts)
        )
        object.__setattr__(self, "_orders", orders)
        object.__setattr__(self, "_ratios", _ratios(self.weights))
        if self.last_batch == "drop" and orders[0].num_samples < self.global_batch:
            raise DataError(
                f"{orders[0].num_samples} samples do not fill one batch of {self.global_batch}, and train.last_batch: "
                "drop leaves out what does not; use a smaller train.global_batch, or wrap or short"
            )

    def samples(self, step: int, rank: int = 0, world_size: int = 1) -> list[SampleRef]:
        """One rank's part of one global batch, in slot order; slots without a sample are not in it.

        Rank r of R takes the slots [r * B / R, (r + 1) * B / R) of a global batch of B.

        Args:
            step: Optimiser step of the whole training, from 0.
            rank: 0..world_size-1.
            world_size: R, a divisor of B.

        Raises:
            ValueError: the ranks do not divide the batch, or a number is out of range.
        """
        slots = self.slots(rank, world_size)
        datasets, draws = (part[slots.start : slots.stop].tolist() for part in self._draws(step))
        refs = []
        # The last batch of an epoch may end before the slots do, or go on behind them.
        for slot, dataset, draw in zip(slots, datasets, draws, strict=False):
            epoch, index = self._orders[dataset].locate(draw)
            refs.append(SampleRef(epoch, index, slot, dataset))
        return refs

    def slots(self, rank: int, world_size: int) -> range:
        """The slots of a rank.

        Raises:
            ValueError: the ranks do not divide the batch, or there is no such rank.
        """
        if not 0 <= rank < world_size:
            raise ValueError(f"no plan for rank {rank} of {world_size}")
        if self.global_batch % world_size:
            raise ValueError(f"a global batch of {self.global_batch} cannot be shared equally by {world_size} ranks")
        share = self.global_batch // world_size
        return range(rank * share, (rank + 1) * share)

    def shards(self, first_step: int, stop_step: int, ahead: int = 0) -> tuple[list[int], ...]:
        """For each dataset the shards that the steps first_step .. stop_step - 1 need, and `ahead` windows more.

        Returns:
            Numbers of the shards in the order in which they are needed; with a global shuffle all of them.
        """
        spans = zip(self._orders, self._drawn(first_step), self._drawn(stop_step), strict=True)
        return tuple(order.shards(first, max(stop, first + 1), ahead) for order, first, stop in spans)

    def _draws(self, step: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Dataset and draw of each slot of a batch; fewer in a short one, and more where `drop` leaves out the rest."""
        if step < 0:
            raise ValueError(f"no plan for step {step}")
        first, stop = self._drawn(step), self._drawn(step + 1)
        draws = np.concatenate([np.arange(*span) for span in zip(first, stop, strict=True)])
        datasets = np.repeat(np.arange(len(first)), np.subtract(stop, first))
        if len(first) == 1:
            return datasets, draws
        order = slot_order(self.seed, step, len(draws))
        return datasets[order], draws[order]

    def _drawn(self, step: int) -> list[int]:
        """Draws of each dataset before a step; `drop` counts those that it has left out."""
        if self.last_batch == "wrap":
            return _portions(step * self.global_batch, self._ratios)
        num_samples = self._orders[0].num_samples
        whole, rest = divmod(num_samples, self.global_batch)
        epoch, step_of_epoch = divmod(step, whole + (rest > 0 and self.last_batch == "short"))
        return [epoch * num_samples + step_of_epoch * self.global_batch]


def _ratios(weights: tuple[float, ...]) -> tuple[Fraction, ...]:
    """Share of each dataset in what the ones before it leave over."""
    exact = [Fraction(str(weight)) for weight in weights]
    return tuple(weight / sum(exact[dataset:]) for dataset, weight in enumerate(exact))


def _portions(places: int, ratios: tuple[Fraction, ...]) -> list[int]:
    """`places` dealt out by ratio; one place more gives one dataset one more and takes from none."""
    portions = []
    for ratio in ratios:
        portions.append(math.floor(places * ratio + _HALF))
        places -= portions[-1]
    return portions
