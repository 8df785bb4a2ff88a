"""Route of the service's own condition."""

from __future__ import annotations

import shutil
import time
from importlib.metadata import version
from pathlib import Path
from typing import Literal

from fastapi import APIRouter
from pydantic import BaseModel, Field

from segfleet.server.services import ServicesArg

router = APIRouter(tags=["service"])

# Less room than both means that checkpoints will soon find none.
_LOW_SHARE, _LOW_BYTES = 0.05, 50e9


class DispatcherAnswer(BaseModel):
    """Whether the thread that sends jobs lives."""

    ok: bool


class ServerAnswer(BaseModel):
    """This server among those on its database."""

    name: str
    role: Literal["leader", "follower"]


class LeaderAnswer(BaseModel):
    """The server that schedules."""

    name: str | None
    epoch: int
    since: float | None


class CapacityAnswer(BaseModel):
    """What the cluster has in all."""

    cpus: int
    gpus: int
    nodes: int


class RayAnswer(BaseModel):
    """The cluster as the scheduler saw it last."""

    ok: bool
    url: str
    trouble: str | None = Field(description="why it cannot be used")
    capacity: CapacityAnswer | None


class MLflowAnswer(BaseModel):
    """Whether MLflow answers now."""

    ok: bool
    url: str


class DatabaseAnswer(BaseModel):
    """The queue's database."""

    kind: str = Field(description="sqlite or postgresql")
    answered_in_s: float = Field(description="a count of all jobs, just now")


class StorageAnswer(BaseModel):
    """Where logs lie, and checkpoints unless they go to an object store."""

    ok: bool = Field(description="it is there, with at least 5 % or 50 GB free")
    path: str
    free_bytes: int | None
    total_bytes: int | None


class StatusAnswer(BaseModel):
    """The queue in numbers, and whether the parts of the service answer."""

    version: str
    jobs: dict[str, int] = Field(description="by state")
    dispatcher: DispatcherAnswer
    server: ServerAnswer
    leader: LeaderAnswer
    ray: RayAnswer
    mlflow: MLflowAnswer
    database: DatabaseAnswer
    storage: StorageAnswer


@router.get("/status")
def status(services: ServicesArg) -> StatusAnswer:
    """The queue in numbers, and whether the parts of the service answer."""
    board, office = services.queue.board, services.office
    nodes, leader = board.nodes, office.leader()
    capacity = None
    if nodes is not None:
        cpus, gpus = sum(node.cpus for node in nodes), sum(node.gpus for node in nodes)
        capacity = CapacityAnswer(cpus=cpus, gpus=gpus, nodes=len(nodes))
    url = services.settings.cluster_url
    began = time.perf_counter()
    counts = services.queue.counts()
    database = DatabaseAnswer(kind=services.queue.store.kind, answered_in_s=time.perf_counter() - began)
    return StatusAnswer(
        version=version("segfleet"),
        jobs={str(state): count for state, count in counts.items()},
        dispatcher=DispatcherAnswer(ok=services.is_dispatching()),
        server=ServerAnswer(name=office.holder, role="follower" if office.term is None else "leader"),
        leader=LeaderAnswer(name=leader.holder, epoch=leader.epoch, since=leader.since),
        ray=RayAnswer(ok=nodes is not None, url=url, trouble=board.trouble, capacity=capacity),
        mlflow=MLflowAnswer(ok=services.registry.is_up(), url=services.settings.mlflow_uri),
        database=database,
        storage=storage_of(services.settings.home.storage),
    )


def storage_of(folder: Path) -> StorageAnswer:
    """How much room a folder has."""
    try:
        usage = shutil.disk_usage(folder)
    except OSError:
        return StorageAnswer(ok=False, path=str(folder), free_bytes=None, total_bytes=None)
    is_roomy = usage.free >= min(_LOW_SHARE * usage.total, _LOW_BYTES)
    return StorageAnswer(ok=is_roomy, path=str(folder), free_bytes=usage.free, total_bytes=usage.total)
