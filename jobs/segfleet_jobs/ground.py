"""What a group of workers stands on: which machines are about to go, and whether the rest can hold it; pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from segfleet.queue.scheduling.pool import Pool
from segfleet.queue.scheduling.values import Gang, Node

# So long a group that has lost a machine may be without room: what replaces a machine is there at once, or much later.
SHORT_S = 5.0


@dataclass(frozen=True, slots=True)
class Machine:
    """A node of the cluster.

    Attributes:
        node: Ray's id of it.
        address: For people.
        room: All its CPUs and GPUs.
        is_alive: Ray has not declared it dead.
        leaves_at: When it goes, seconds since the epoch; 0: soon, nobody says when; None: it stays.
    """

    node: str
    address: str
    room: Node
    is_alive: bool = True
    leaves_at: float | None = None

    @property
    def stays(self) -> bool:
        """Whether workers can be put on it."""
        return self.is_alive and self.leaves_at is None


@dataclass(frozen=True, slots=True)
class Leaving:
    """Workers stand on machines that are about to go."""

    machines: tuple[Machine, ...]


@dataclass(frozen=True, slots=True)
class Short:
    """No worker stands, and the machines that are left cannot hold the group.

    Attributes:
        lost: What it stood on, or was to stand on, and what is gone or about to go.
    """

    lost: tuple[Machine, ...]

    def __str__(self) -> str:
        names = ", ".join(machine.address for machine in self.lost)
        return f"without node{'s' if len(self.lost) > 1 else ''} {names} there is no room for all workers"


def look(
    machines: Sequence[Machine], standing: Collection[str], fallen: Iterable[str], gang: Gang
) -> Leaving | Short | None:
    """What the ground asks for, if anything.

    Args:
        machines: All that Ray knows of; none: it was not asked yet.
        standing: Nodes of workers that are at work.
        fallen: Nodes of workers that are over.
        gang: What the group needs; all its workers at once.
    """
    leaving = tuple(machine for machine in machines if machine.is_alive and not machine.stays)
    if below := tuple(machine for machine in leaving if machine.node in standing):
        return Leaving(below)
    if standing:
        return None
    if known := set(fallen):
        lost = tuple(machine for machine in machines if machine.node in known and not machine.stays)
    else:  # a cluster that was never large enough may be about to grow
        lost = leaving if _hold((machine for machine in machines if machine.is_alive), gang) else ()
    return Short(lost) if lost and not _hold((machine for machine in machines if machine.stays), gang) else None


def _hold(machines: Iterable[Machine], gang: Gang) -> bool:
    return Pool(tuple(machine.room for machine in machines)).place(gang, gang.workers) is not None


class Footing:
    """Remembers since when a group has been short of room.

    Args:
        gang: What the group needs.
        short_s: How long that may last.
    """

    def __init__(self, gang: Gang, short_s: float = SHORT_S) -> None:
        self._gang, self._short_s = gang, short_s
        self._short_since: float | None = None

    def look(
        self, machines: Sequence[Machine], standing: Collection[str], fallen: Iterable[str], now: float
    ) -> Leaving | Short | None:
        """As the function `look`, but a shortage only when it has lasted.

        Args:
            now: Seconds of a clock that does not jump.
        """
        found = look(machines, standing, fallen, self._gang)
        if not isinstance(found, Short):
            self._short_since = None
            return found
        if self._short_since is None:
            self._short_since = now
        return found if now - self._short_since >= self._short_s else None
