"""The cluster's machines as people see them, and what of them counts for the scheduler."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from segfleet.queue.scheduling.values import Node


@dataclass(frozen=True, slots=True)
class Machine:
    """A machine that is alive.

    Attributes:
        id: The cluster's name of it.
        address: For people.
        cpus: All it has.
        gpus: All it has.
        used_cpus: Of these, those that the cluster keeps for workers; None: it does not say.
        used_gpus: Of these, those that the cluster keeps for workers; None: it does not say.
        is_leaving: It is about to go, and nothing new is put on it.
    """

    id: str
    address: str
    cpus: int
    gpus: int
    used_cpus: int | None = None
    used_gpus: int | None = None
    is_leaving: bool = False


def usable(machines: Iterable[Machine], leaving: Collection[str] = ()) -> tuple[Node, ...]:
    """Room on the machines that stay.

    Args:
        machines: All that are alive.
        leaving: Ids of those that are about to go.
    """
    return tuple(Node(machine.cpus, machine.gpus) for machine in machines if machine.id not in leaving)
