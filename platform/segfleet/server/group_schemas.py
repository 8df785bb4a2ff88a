"""Shapes of what an attempt tells of its groups of workers and of the machines below them."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, Field

from segfleet.queue.model import clean_text
from segfleet.queue.node_rows import Leaving
from segfleet.server.schemas import Body

_Word = Annotated[str, Field(pattern=r"^[0-9A-Za-z:._-]{1,64}$")]


class GroupBody(Body):
    """A group of workers that begins."""

    scope: Annotated[str, Field(pattern=r"^[0-9a-z]{1,16}$")] = Field(
        description="an attempt has one group at a time of each scope"
    )


class GroupAnswer(BaseModel):
    """What the group's workers show from now on."""

    number: int = Field(description="from 1 in each attempt and scope")
    token: str = Field(description="in place of the attempt's own")


class LeavingNode(Body):
    """A machine that is about to go."""

    node: _Word = Field(description="the cluster's id of it")
    address: Annotated[str, Field(max_length=64)]
    leaves_at: Annotated[float, Field(ge=0.0, lt=1e12)] | None = Field(
        None, description="seconds since the epoch; null: nobody says"
    )

    def value(self) -> Leaving:
        """For the queue."""
        return Leaving(self.node, clean_text(self.address), self.leaves_at)


class LeaveBody(Body):
    """The machines below an attempt that are about to go."""

    nodes: Annotated[list[LeavingNode], Field(min_length=1, max_length=1000)]
