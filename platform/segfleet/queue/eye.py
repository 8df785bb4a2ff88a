"""What the service sees of the cluster: is it there, in which life, with which nodes."""

from __future__ import annotations

import logging
from dataclasses import replace

from segfleet.errors import LaunchError
from segfleet.queue.machines import Machine, usable
from segfleet.queue.scheduling.values import Node
from segfleet.queue.sending import ClusterDoor

NODES_EVERY_S = 5.0

logger = logging.getLogger(__name__)


class ClusterEye:
    """Looks at the cluster once a turn, and at its nodes once in a while or when they must have changed.

    Args:
        launcher: The cluster.
        grows: Whoever owns the quotas also makes the nodes: that there is none is no trouble.

    Attributes:
        session: Name of the cluster's life; None: it cannot be reached.
        machines: That are alive; those that are about to go too.
        nodes: Those that new workers can be put on; None: not known.
        trouble: Why nothing can be started; empty: nothing stands against it.
    """

    def __init__(self, launcher: ClusterDoor, *, grows: bool) -> None:
        self._launcher, self._grows = launcher, grows
        self._looked_at = float("-inf")
        self._leaving: frozenset[str] = frozenset()
        self.session: str | None = None
        self.machines: tuple[Machine, ...] = ()
        self.nodes: tuple[Node, ...] | None = None
        self.trouble = ""

    def look(self, leaving: frozenset[str], now: float) -> None:
        """See what is there.

        Args:
            leaving: Ids of nodes that are about to go.
            now: Seconds of a clock that does not jump.
        """
        try:
            session = self._launcher.session()
            is_due = now - self._looked_at >= NODES_EVERY_S
            if session != self.session or self.nodes is None or is_due or leaving != self._leaving:
                self._look_at_nodes(leaving)
                self._looked_at = now
            self.session = session
            self.trouble = "" if self.nodes or self._grows else "the cluster has no node yet"
        except LaunchError as error:
            self.lose(error)

    def look_again(self) -> None:
        """An attempt has ended before its time: that may be because a node has."""
        if self.session is None:
            return
        try:
            self._look_at_nodes(self._leaving)
        except LaunchError as error:
            self.lose(error)

    def lose(self, error: LaunchError) -> None:
        """The cluster is out of sight."""
        if not self.trouble:
            logger.warning("dispatcher: %s", error)
        self.session, self.machines, self.nodes, self.trouble = None, (), None, str(error)

    def _look_at_nodes(self, leaving: frozenset[str]) -> None:
        machines = self._launcher.machines()
        self.machines = tuple(replace(machine, is_leaving=machine.id in leaving) for machine in machines)
        self.nodes, self._leaving = usable(machines, leaving), leaving
