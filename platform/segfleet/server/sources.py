"""What the streams tell: the history of all jobs, one job's life, one job's log."""

from __future__ import annotations

import codecs
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from starlette.concurrency import run_in_threadpool

from segfleet.errors import QueueUnavailableError
from segfleet.queue.model import Attempt, Event, Job, JobEvent
from segfleet.queue.service import Queue
from segfleet.queue.states import is_terminal
from segfleet.server.feed import Feed
from segfleet.server.logs import read_logs
from segfleet.server.schemas import EventAnswer, HistoryAnswer, JobAnswer
from segfleet.server.streams import Message, Pause, Source

# A source says something at least so often: proxies cut idle connections, and the right to listen is looked at then.
_BREATH_S = 10.0
_LOG_EVERY_S = 1.0
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Interest:
    """Which lines of the history somebody wants; what is not given leaves none out."""

    project: str | None = None
    owner: str | None = None
    job: str | None = None
    kind: str | None = None
    state: str | None = None

    def takes(self, line: JobEvent) -> bool:
        """Whether the line is among them; `state` is the one that the job came into."""
        pairs = (
            (self.project, line.project),
            (self.owner, line.owner),
            (self.job, line.event.job_id),
            (self.kind, line.job_kind),
            (self.state, line.event.target),
        )
        return all(wanted is None or wanted == found for wanted, found in pairs)


async def history(feed: Feed, interest: Interest, after: int | None) -> Source:
    """The lines of the history as they settle, behind the line `after`; None: from now on."""
    with feed.listening() as listener:
        while feed.head is None and not feed.is_closed:
            await listener.wait(_BREATH_S)
        position = (feed.head or 0) if after is None else after
        while not feed.is_closed:
            lines = feed.since(position)
            if lines is None:
                lines = await _patiently(feed.read_since, position)
            for line in lines or ():
                if interest.takes(line):
                    yield Message("history", HistoryAnswer.of_line(line).model_dump(), line.event.seq)
            if lines:
                position = lines[-1].event.seq
            else:
                yield Pause(position)
                await listener.wait(_BREATH_S)


async def life(feed: Feed, queue: Queue, job_id: str, after: int) -> Source:
    """A job's document whenever it changes, and its history behind the line `after`; ends when the job has ended."""
    told = None
    with feed.listening(job_id) as listener:
        seen: object = None
        while True:
            now = (feed.versions.get(job_id), queue.board.waits.get(job_id))
            if now == seen:
                yield Pause()
                await listener.wait(_BREATH_S)
                continue
            found = await _patiently(_look, queue, job_id, after)
            if found is None:
                await listener.wait(_BREATH_S)
                continue
            (job, lines), seen = found, now
            for line in lines:
                yield Message("history", EventAnswer.of(line).model_dump(), line.seq)
                after = line.seq
            document = JobAnswer(**JobAnswer.fields_of(job)).model_dump()
            if document != told:
                yield Message("job", document)
                told = document
            if is_terminal(job.state):
                yield Message("end", {"state": job.state})
                return
            if feed.is_closed:
                return


async def log(feed: Feed, queue: Queue, folder: Path, job_id: str, offset: int) -> Source:
    """The text of a job's log from a byte on; ends when nothing will be added any more."""
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    attempts: tuple[Attempt, ...] = ()
    with feed.listening(job_id) as listener:
        seen: object = None
        is_over = False
        last = time.monotonic()
        while True:
            version = feed.versions.get(job_id)
            if version is None or version != seen or is_over:
                found = await _patiently(_standing, queue, job_id)
                if found is not None:
                    (is_over, attempts), seen = found, version
            ids = [attempt.id for attempt in attempts]
            data, offset = await run_in_threadpool(read_logs, folder, ids, offset)
            if data:
                text = decoder.decode(data)
                # What waits for the rest of its character is not told yet.
                yield Message("log", {"text": text}, offset - len(decoder.getstate()[0]))
                last = time.monotonic()
                continue
            if is_over and all(attempt.closed for attempt in attempts):
                yield Message("end", {"text": decoder.decode(b"", final=True)}, offset)
                return
            if feed.is_closed:
                return
            if time.monotonic() - last >= _BREATH_S:
                yield Pause()
                last = time.monotonic()
            await listener.wait(_LOG_EVERY_S)


def _look(queue: Queue, job_id: str, after: int) -> tuple[Job, list[Event]]:
    return queue.get(job_id), list(queue.events(job_id, after))


def _standing(queue: Queue, job_id: str) -> tuple[bool, tuple[Attempt, ...]]:
    # The job before its attempts: an end seen first would promise a log that is still being copied.
    return is_terminal(queue.get(job_id).state), queue.attempts(job_id)


async def _patiently(look: Callable[..., T], *arguments: object) -> T | None:
    """What a look into the database finds; None: it cannot be read now, and a stream lives longer than that."""
    try:
        return await run_in_threadpool(look, *arguments)
    except QueueUnavailableError:
        return None
