"""The group of DDP processes: who am I, and how do we agree. One process alone needs no process group."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from segfleet_jobs.pulse import Pulse


@dataclass(frozen=True, slots=True)
class Ranks:
    """This process in its group.

    Attributes:
        pulse: What it is at; told to the driver where somebody listens.
    """

    rank: int
    world_size: int
    device: torch.device
    pulse: Pulse = field(default_factory=Pulse, compare=False)

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, which writes and reports for all."""
        return self.rank == 0

    def sum_(self, tensor: Tensor) -> Tensor:
        """Sum over all ranks, in place."""
        if self.world_size > 1:
            with self.pulse.waiting():
                dist.all_reduce(tensor)
        return tensor

    def copy_from_main_(self, tensor: Tensor) -> Tensor:
        """Rank 0's tensor on every rank, in place."""
        if self.world_size > 1:
            with self.pulse.waiting():
                dist.broadcast(tensor, src=0)
        return tensor

    def share(self, value: Any) -> Any:
        """Rank 0's value, on every rank."""
        if self.world_size == 1:
            return value
        box = [value if self.is_main else None]
        with self.pulse.waiting():
            dist.broadcast_object_list(box, src=0)
        return box[0]

    def gather(self, tensor: Tensor) -> list[Tensor]:
        """Every rank's tensor (equal shapes), in the order of ranks, on every rank."""
        if self.world_size == 1:
            return [tensor]
        parts = [torch.empty_like(tensor) for _ in range(self.world_size)]
        with self.pulse.waiting():
            dist.all_gather(parts, tensor)
        return parts
