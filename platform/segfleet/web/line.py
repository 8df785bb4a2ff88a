"""The jobs that have not ended, kept from one look to the next: only those that have changed are read again."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from segfleet.queue.scheduling.values import Wait
from segfleet.queue.states import HOLDING, JobState
from segfleet.web.rows import PageRows


@dataclass(frozen=True, slots=True)
class Entry:
    """What of an active job can be told without its documents; the fields are its row's."""

    seq: int
    id: str
    name: str
    kind: str
    owner: str
    project: str
    state: str
    priority: int
    started_at: float | None
    cpus: int
    gpus: int
    workers: int


class Line:
    """Follows the active jobs; belongs to one thread at a time.

    What a job is called and asks for never changes, so the index of the line tells which rows have to be read: new
    ones, and those of another state or priority. In a long queue few have.
    """

    def __init__(self) -> None:
        self._standing: frozenset[tuple[int, str, int]] = frozenset()
        self._entries: dict[int, Entry] = {}

    def read(self, rows: PageRows) -> list[Entry]:
        """Every active job, in no order.

        Raises:
            QueueUnavailableError: the database cannot be read.
        """
        standing = rows.standing()
        changed = {seq for seq, _, _ in standing ^ self._standing}
        # Those that run are read each time: they may have ended and begun anew since the last look.
        changed |= {seq for seq, state, _ in standing if state in HOLDING}
        found = {row.seq: Entry(**row._mapping) for row in rows.brief(changed)}
        for seq in changed - found.keys():
            self._entries.pop(seq, None)
        self._entries |= found
        self._standing = standing
        return list(self._entries.values())


def in_order(entries: Iterable[Entry], waits: Mapping[str, Wait]) -> list[Entry]:
    """Those that run, the longest first, and start; those that wait, by their place; those that are paused."""
    holding, placed, others = [], [], []
    for entry in entries:
        if entry.state in HOLDING:
            holding.append(entry)
        elif entry.state == JobState.QUEUED and entry.id in waits:
            placed.append(entry)
        else:
            others.append(entry)
    holding.sort(key=lambda entry: (entry.started_at is None, entry.started_at or 0.0, entry.seq))
    placed.sort(key=lambda entry: waits[entry.id].place)
    # Whoever has no place yet comes behind those that have.
    others.sort(key=lambda entry: (entry.state == JobState.PAUSED, -entry.priority, entry.seq))
    return [*holding, *placed, *others]
