"""What the leader's last turn saw, for people: kept in memory, and copied to the servers that do not lead."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields

from segfleet.queue.leadership import Term
from segfleet.queue.machines import Machine
from segfleet.queue.model import Document
from segfleet.queue.scheduling.values import Node, Wait
from segfleet.queue.store import Store

# The board of a long queue is large, and people can wait.
PUBLISH_EVERY_S = 2.0
_NODE = tuple(one.name for one in fields(Node))
_WAIT = tuple(one.name for one in fields(Wait))
_MACHINE = tuple(one.name for one in fields(Machine))


@dataclass(frozen=True, slots=True)
class Board:
    """What the dispatcher's last turn saw; a view for people that decides nothing.

    Attributes:
        nodes: The cluster's machines that stay; None: not reachable, or not yet asked.
        trouble: Why the cluster is not reachable; empty: it is.
        waits: Place and reason of each queued job.
        machines: All of them that are alive, with what is in use.
    """

    nodes: tuple[Node, ...] | None = None
    trouble: str = ""
    waits: Mapping[str, Wait] = field(default_factory=dict)
    machines: tuple[Machine, ...] = ()

    def as_document(self) -> Document:
        """As plain data."""
        nodes = None if self.nodes is None else [[getattr(node, name) for name in _NODE] for node in self.nodes]
        waits = [[getattr(wait, name) for name in _WAIT] for wait in self.waits.values()]
        machines = [[getattr(machine, name) for name in _MACHINE] for machine in self.machines]
        columns = [_NODE, _WAIT, _MACHINE]
        return {"columns": columns, "nodes": nodes, "trouble": self.trouble, "waits": waits, "machines": machines}

    @classmethod
    def of_document(cls, document: Document) -> Board:
        """From plain data; an empty board if it is none, or another version's."""
        if document.get("columns") != [list(_NODE), list(_WAIT), list(_MACHINE)]:
            return cls()
        nodes = None if document["nodes"] is None else tuple(Node(*values) for values in document["nodes"])
        waits = (Wait(*values) for values in document["waits"])
        machines = tuple(Machine(*values) for values in document["machines"])
        return cls(nodes, document["trouble"], {wait.job_id: wait for wait in waits}, machines)


class Publisher:
    """Stores the leader's board where other servers see it: when it has changed, and only once in a while.

    Args:
        lead: The leader's right to write.
        is_needed: Whether there can be other servers.
    """

    def __init__(self, lead: Term, is_needed: bool) -> None:
        self._lead, self._is_needed = lead, is_needed
        self._published: Board | None = None
        self._at = float("-inf")

    def publish(self, board: Board, now: float) -> None:
        """Store the board, if it is time to.

        Raises:
            LeadershipLostError: another server leads.
            QueueUnavailableError: the database refuses.
        """
        if not self._is_needed or now - self._at < PUBLISH_EVERY_S or board == self._published:
            return
        with self._lead.write() as tx:
            tx.leaders.put_board(board.as_document())
        self._published, self._at = board, now


class Mirror:
    """Reads the leader's board where it was stored.

    Args:
        store: The database.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._version: int | None = None

    def look(self) -> Board | None:
        """The board, if it has changed since the last look.

        Raises:
            QueueUnavailableError: the database cannot be read.
        """
        with self._store.read() as tx:
            version = tx.leaders.board_version()
            if version == self._version:
                return None
            board = Board.of_document(tx.leaders.board())
        self._version = version
        return board
