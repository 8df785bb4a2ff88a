"""SQL of searches' trials, inside one transaction of the queue's database."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, Row, delete, func, insert, select, update

from segfleet.queue.tables import trials

Document = dict[str, Any]


class TrialRows:
    """Reads and writes of trials; whoever writes holds the lock of the search's job.

    Args:
        connection: With the transaction begun.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def all_of(self, job_id: str) -> list[Document]:
        """All trials of a search, by number."""
        query = select(trials).where(trials.c.job_id == job_id).order_by(trials.c.number)
        return [_document(row) for row in self._connection.execute(query)]

    def get(self, job_id: str, number: int) -> Document | None:
        """One trial; None: there is none of that number."""
        row = self._connection.execute(select(trials).where(_is(job_id, number))).one_or_none()
        return None if row is None else _document(row)

    def insert(self, values: Document) -> None:
        """Add a trial."""
        self._connection.execute(insert(trials).values(values))

    def change(self, trial: Document, changes: Document) -> int:
        """Write changed fields if the trial is still in the state it was read in; the number of rows written."""
        same = _is(trial["job_id"], trial["number"]) & (trials.c.state == trial["state"])
        return self._connection.execute(update(trials).where(same).values(changes)).rowcount

    def steps_done(self, job_id: str) -> int:
        """Sum over the trials of the furthest step of each."""
        query = select(func.sum(trials.c.step)).where(trials.c.job_id == job_id)
        return int(self._connection.scalar(query) or 0)

    def clear(self, job_id: str) -> None:
        """Forget all trials of a search."""
        self._connection.execute(delete(trials).where(trials.c.job_id == job_id))


def _is(job_id: str, number: int) -> Any:
    return (trials.c.job_id == job_id) & (trials.c.number == number)


def _document(row: Row[Any]) -> Document:
    return dict(row._mapping)
