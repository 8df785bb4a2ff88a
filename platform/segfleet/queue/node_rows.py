"""SQL of the machines that are about to go, inside one transaction of the queue's database."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from sqlalchemy import Connection, delete, insert, select

from segfleet.queue.tables import leaving

# A cluster names a machine by a number of its own life: long after it was told of, it is gone.
FORGET_S = 7 * 86400.0


@dataclass(frozen=True, slots=True)
class Leaving:
    """A machine that the cluster puts nothing on any more.

    Attributes:
        node: The cluster's id of it.
        address: For people.
        leaves_at: When it goes, seconds since the epoch; None: nobody says.
    """

    node: str
    address: str
    leaves_at: float | None


class NodeRows:
    """Reads and writes what is known of leaving machines.

    Args:
        connection: With the transaction begun.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def leaving(self) -> frozenset[str]:
        """Ids of all that were told of."""
        return frozenset(self._connection.scalars(select(leaving.c.node)))

    def add_leaving(self, machines: Iterable[Leaving], now: float) -> None:
        """Note machines; the latest word on one counts, and very old ones are forgotten."""
        c = leaving.c
        for machine in machines:
            self._connection.execute(delete(leaving).where((c.node == machine.node) | (c.told_at < now - FORGET_S)))
            values = {"node": machine.node, "address": machine.address, "leaves_at": machine.leaves_at, "told_at": now}
            self._connection.execute(insert(leaving).values(values))
