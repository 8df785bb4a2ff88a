"""SQL of the leader's lease and board, inside one transaction of the queue's database."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, select, update

from segfleet.queue.tables import boards, leaders


@dataclass(frozen=True, slots=True)
class Leader:
    """Who leads.

    Attributes:
        epoch: Rises with each change of the leader; a write under another one is refused.
        holder: The server; empty: it has given the lease back, or there was none yet.
        beats: Count of renewals; whether the leader lives is judged by its changes, not by clock times.
        since: Start of the epoch by the holder's clock, for people.
        renewed_at: Latest renewal by the holder's clock, for people.
    """

    epoch: int
    holder: str
    beats: int
    since: float | None
    renewed_at: float | None


class LeaderRows:
    """Reads and writes of the lease and the board; each is one row, which the migration has made.

    Args:
        connection: With the transaction begun.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def leader(self) -> Leader:
        """Who leads."""
        c = leaders.c
        row = self._connection.execute(select(c.epoch, c.holder, c.beats, c.since, c.renewed_at)).one()
        return Leader(**row._mapping)

    def held_epoch(self) -> int:
        """The epoch, which nobody changes before this transaction ends (SQLite has locked the whole file)."""
        return int(self._connection.execute(select(leaders.c.epoch).with_for_update(read=True)).scalar_one())

    def change(self, epoch: int, changes: dict[str, Any], beats: int | None = None) -> bool:
        """Write to the lease if it is still of this epoch and, if given, of this beat; whether it was."""
        same = leaders.c.epoch == epoch
        if beats is not None:
            same &= leaders.c.beats == beats
        return self._connection.execute(update(leaders).where(same).values(changes)).rowcount == 1

    def beat(self, epoch: int, now: float) -> bool:
        """Renew the lease if it is still of this epoch; whether it was."""
        return self.change(epoch, {"beats": leaders.c.beats + 1, "renewed_at": now})

    def put_board(self, document: dict[str, Any]) -> None:
        """Replace the board."""
        self._connection.execute(update(boards).values(version=boards.c.version + 1, document=document))

    def board_version(self) -> int:
        """Rises with each change of the board."""
        return int(self._connection.execute(select(boards.c.version)).scalar_one())

    def board(self) -> dict[str, Any]:
        """The board as it was put, empty before the first."""
        document: dict[str, Any] = self._connection.execute(select(boards.c.document)).scalar_one()
        return document
