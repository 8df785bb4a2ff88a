"""What a driver does when the machines below its workers go: it makes way, or ends an attempt without room."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Protocol

from segfleet.queue.scheduling.values import Gang
from segfleet_jobs.ground import Footing, Leaving, Machine


class Cluster(Protocol):
    """What Ray knows of its machines; `group.RayCluster`."""

    def leaving(self) -> Mapping[str, float]:
        """Ids of the nodes that drain, and when they go, seconds since the epoch (0: nobody says); cheap."""

    def machines(self) -> Sequence[Machine]:
        """All nodes."""


class Evacuation:
    """Acts once for each machine; used by one thread.

    Args:
        gang: What the group needs.
        cluster: The machines.
        leave: Has the service ask the attempt to write a checkpoint and end. May raise: it is tried again.
        give_up: Ends the attempt, which has no room any more; told why, and whether it was asked to leave. None: the
            group ends by itself, and is not the attempt.
    """

    def __init__(
        self,
        gang: Gang,
        cluster: Cluster,
        leave: Callable[[Sequence[Machine]], None],
        give_up: Callable[[str, bool], None] | None,
    ) -> None:
        self._footing, self._cluster, self._leave, self._give_up = Footing(gang), cluster, leave, give_up
        self._told: set[str] = set()

    def look(self, standing: Collection[str], fallen: Collection[str], now: float) -> None:
        """One look at the machines, and what follows.

        Args:
            standing: Nodes of workers that are at work.
            fallen: Nodes of workers that are over.
            now: Seconds of a clock that does not jump.
        """
        if (standing or not fallen) and not self._cluster.leaving():
            machines: Sequence[Machine] = ()  # all machines of a large cluster are many
        else:
            machines = self._cluster.machines()
        found = self._footing.look(machines, standing, fallen, now)
        if isinstance(found, Leaving):
            self._tell(found.machines)
        elif found is not None and self._give_up is not None:
            self._tell(found.lost)
            self._give_up(str(found), bool(self._told))

    def _tell(self, machines: Sequence[Machine]) -> None:
        news = [machine for machine in machines if machine.is_alive and machine.node not in self._told]
        if news:
            names = ", ".join(machine.address for machine in news)
            print(f"segfleet: node {names} will leave the cluster; the training makes way", flush=True)
            self._leave(news)
            self._told.update(machine.node for machine in news)
