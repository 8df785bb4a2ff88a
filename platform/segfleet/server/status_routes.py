"""Route of the service's own condition."""

from __future__ import annotations

from importlib.metadata import version
from typing import Literal

from fastapi import APIRouter
from pydantic import BaseModel, Field

from segfleet.server.services import ServicesArg

router = APIRouter(tags=["service"])


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


class StatusAnswer(BaseModel):
    """The queue in numbers, and whether the parts of the service answer."""

    version: str
    jobs: dict[str, int] = Field(description="by state")
    dispatcher: DispatcherAnswer
    server: ServerAnswer
    leader: LeaderAnswer
    ray: RayAnswer
    mlflow: MLflowAnswer


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
    return StatusAnswer(
        version=version("segfleet"),
        jobs={str(state): count for state, count in services.queue.counts().items()},
        dispatcher=DispatcherAnswer(ok=services.is_dispatching()),
        server=ServerAnswer(name=office.holder, role="follower" if office.term is None else "leader"),
        leader=LeaderAnswer(name=leader.holder, epoch=leader.epoch, since=leader.since),
        ray=RayAnswer(ok=nodes is not None, url=url, trouble=board.trouble, capacity=capacity),
        mlflow=MLflowAnswer(ok=services.registry.is_up(), url=services.settings.mlflow_uri),
    )
