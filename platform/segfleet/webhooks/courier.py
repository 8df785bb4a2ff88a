"""Brings events to webhooks: by the leader alone, each at least once, those of a webhook in order."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import httpx

from segfleet.errors import SegfleetError
from segfleet.log_context import about
from segfleet.queue.leadership import Office, Term
from segfleet.queue.model import clean_text
from segfleet.queue.store import Store
from segfleet.telemetry import WEBHOOK_TRIES
from segfleet.webhooks import signing
from segfleet.webhooks.values import DeliveryState, Letter, after_failure

Send = Callable[[str, Mapping[str, str], bytes], int]
EVERY_S, THREADS = 1.0, 3
KEEP_S, FORGET_EVERY_S = 7 * 86_400.0, 3600.0
_JOIN_S = 0.5
_MAX_ANSWER = 200
_log = logging.getLogger(__name__)


class Courier:
    """Delivers what waits in the outbox; safe to share between threads.

    Killed after a request and before its mark, the event is sent again under the same id.

    Args:
        store: The database.
        office: Tells whether this server leads.
        clock: Seconds since the epoch.
        secret_of: The secret of a webhook.
        send: Makes a request: address, headers, body; gives the status.
    """

    def __init__(
        self,
        store: Store,
        office: Office,
        clock: Callable[[], float],
        secret_of: Callable[[str], bytes],
        send: Send,
    ) -> None:
        self._store, self._office, self._clock = store, office, clock
        self._secret_of, self._send = secret_of, send
        self._lock = threading.Lock()
        self._busy: set[str] = set()
        self._forgot_at = float("-inf")

    def turn(self) -> bool:
        """Try one event that is due and whose webhook nobody serves now.

        Returns:
            Whether it was taken, so that another look is worth it at once.

        Raises:
            QueueUnavailableError: the database refuses, or this server leads no longer.
        """
        term = self._office.term
        if term is None or not term.is_certain:
            return False
        self._forget(term)
        letter = self._take()
        if letter is None:
            return False
        try:
            with about(webhook=letter.webhook_id, **_job(letter)):
                return self._deliver(letter, term)
        finally:
            with self._lock:
                self._busy.discard(letter.webhook_id)

    def _take(self) -> Letter | None:
        with self._lock:
            with self._store.read() as tx:
                heads = tx.webhooks.heads(self._clock())
            free = (letter for letter in heads if letter.webhook_id not in self._busy)
            letter = next(free, None)
            if letter is not None:
                self._busy.add(letter.webhook_id)
        return letter

    def _deliver(self, letter: Letter, term: Term) -> bool:
        term.require()
        body = json.dumps(letter.document).encode()
        headers = signing.headers(self._secret_of(letter.webhook_id), letter.id, int(self._clock()), body)
        try:
            status = self._send(letter.url, {**headers, "content-type": "application/json"}, body)
            answer, is_taken = f"HTTP {status}", 200 <= status < 300
        except (httpx.HTTPError, SegfleetError, OSError, ValueError) as error:
            answer, is_taken = f"{type(error).__name__}: {error}", False
        now = self._clock()
        changes = {"tries": letter.tries + 1, "answer": clean_text(answer)[:_MAX_ANSWER]}
        if is_taken:
            changes |= {"state": DeliveryState.DELIVERED, "ended_at": now}
        elif (pause_s := after_failure(letter.tries + 1, now - letter.created_at)) is None:
            changes |= {"state": DeliveryState.DEAD, "ended_at": now}
            _log.warning("event %s given up after %d tries: %s", letter.id, letter.tries + 1, answer)
        else:
            changes |= {"due_at": now + pause_s}
        with term.write() as tx:
            tx.webhooks.mark(letter, changes)
        WEBHOOK_TRIES.labels("taken" if is_taken else "failed").inc()
        return is_taken

    def _forget(self, term: Term) -> None:
        now = self._clock()
        with self._lock:
            if now - self._forgot_at < FORGET_EVERY_S:
                return
            self._forgot_at = now
        with term.write() as tx:
            tx.webhooks.forget(now - KEEP_S)


@contextmanager
def delivering(courier: Courier, every_s: float = EVERY_S, threads: int = THREADS) -> Iterator[None]:
    """Deliver in threads of its own, as long as the context lasts: nothing else waits for a receiver.

    Args:
        courier: Of the service.
        every_s: Pause between two looks when nothing is due, seconds.
        threads: Receivers that are served at a time.
    """
    stop = threading.Event()

    def run() -> None:
        while not stop.is_set():
            try:
                if courier.turn():
                    continue
            except SegfleetError as error:
                _log.warning("webhooks: %s", error)
            except Exception:
                _log.exception("webhooks: cannot go on; the next look tries again")
            stop.wait(every_s)

    crew = [threading.Thread(target=run, name=f"webhooks-{i}", daemon=True) for i in range(threads)]
    for thread in crew:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        # A request that is cut off is made again by whoever leads next.
        for thread in crew:
            thread.join(_JOIN_S)


def _job(letter: Letter) -> dict[str, str]:
    job_id = letter.document["data"].get("job")
    return {} if job_id is None else {"job": job_id}
