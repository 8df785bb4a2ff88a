"""An evaluation as one of a group of gloo processes; a module of its own because those processes import it by name."""

from __future__ import annotations

import os
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing

from segfleet_jobs.evaluate import Plan, score_split
from segfleet_jobs.ranks import Ranks
from training import free_port


def score_in_group(plan: Plan, world_size: int, folder: Path) -> list[dict[str, object]]:
    """What each rank counted: the matrix, the boundary counts and the number of pictures."""
    multiprocessing.spawn(_rank, (world_size, free_port(), plan, folder), nprocs=world_size)  # type: ignore[no-untyped-call]
    return [torch.load(folder / f"{rank}.pt") for rank in range(world_size)]


def _rank(rank: int, world_size: int, port: int, plan: Plan, folder: Path) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=world_size)
    try:
        counts = score_split(plan, Ranks(rank, world_size, torch.device("cpu")), None)["counts"]
    finally:
        dist.destroy_process_group()
    torch.save({"matrix": counts.matrix, "boundary": counts.boundary, "n": counts.num_samples}, folder / f"{rank}.pt")
