"""Which of the servers on one database leads: a lease with a rising epoch, and the fence that it puts before writes.

The lease is kept by watching for changes, never by comparing clocks of different machines: a server takes it over after
it has itself seen no renewal for a whole lease. The one that held it may not know yet, or may be suspended; so each of
its transactions holds the lease's row and looks at the epoch, and is refused when that is no longer its own.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from segfleet.errors import LeadershipLostError
from segfleet.queue.clock import Clock
from segfleet.queue.leader_rows import Leader
from segfleet.queue.store import Store, Transaction

# Parts of the lease: how often it is renewed, and looked at.
_RENEW, _LOOK = 1 / 5, 1 / 15
# A leader that could not renew for so much of the lease asks nothing of the cluster, as others may lead soon.
_CERTAIN = 2 / 3

logger = logging.getLogger(__name__)


class Silence:
    """Tells when a leader has not renewed its lease for the whole of it.

    Args:
        lease_s: Seconds.
    """

    def __init__(self, lease_s: float) -> None:
        self._lease_s = lease_s
        self._sign: tuple[int, int] | None = None
        self._since = self._looked_at = float("-inf")

    def look(self, leader: Leader, now: float) -> bool:
        """Whether it is silent for longer than the lease.

        While this server could not look, perhaps nobody could renew, as when the database is away: the watch then
        begins anew.

        Args:
            leader: As it is in the database now.
            now: Seconds of a clock that does not jump.
        """
        sign = (leader.epoch, leader.beats)
        if sign != self._sign or now - self._looked_at > self._lease_s / 2:
            self._sign, self._since = sign, now
        self._looked_at = now
        return now - self._since > self._lease_s


class Term:
    """One server's time as the leader: the right to write as the service, and to ask things of the cluster.

    Args:
        store: The database.
        clock: Seconds of a clock that does not jump.
        epoch: Under which it leads.
        lease_s: Time after a renewal in which nobody else takes over, seconds.
    """

    def __init__(self, store: Store, clock: Clock, epoch: int, lease_s: float) -> None:
        self._store, self._clock, self._lease_s = store, clock, lease_s
        self.epoch = epoch
        self.renewed_at = clock()
        self.is_over = False

    @property
    def is_certain(self) -> bool:
        """Whether no other server can lead yet, as far as this one's clock can tell."""
        return not self.is_over and self._clock() - self.renewed_at < self._lease_s * _CERTAIN

    def require(self) -> None:
        """Go on only while no other server can lead; for what no transaction can fence, such as calls to Ray.

        Raises:
            LeadershipLostError: one does, or may.
        """
        if not self.is_certain:
            what = "is over" if self.is_over else "could not be renewed in time"
            raise LeadershipLostError(f"the leadership of epoch {self.epoch} {what}; another server may lead")

    @contextmanager
    def write(self) -> Iterator[Transaction]:
        """A write transaction during which no other server can become the leader.

        Raises:
            LeadershipLostError: another one has; nothing was written.
            QueueUnavailableError: as `Store.write`.
        """
        with self._store.write() as tx:
            epoch = tx.leaders.held_epoch()
            if epoch != self.epoch:
                self.is_over = True
                raise LeadershipLostError(f"epoch {self.epoch} has ended: epoch {epoch} leads; nothing was stored")
            yield tx


class Office:
    """One server's part in the election; its turns are taken by one thread, and `term` is read by all.

    Args:
        store: The database.
        clock: Seconds since the epoch, by a clock that does not jump.
        holder: Name of this server. Only one process at a time may bear it: the server that starts under a name takes
            the lease of the one before at once.
        lease_s: A leader silent for longer is replaced, seconds; the same on all servers.
    """

    def __init__(self, store: Store, clock: Clock, holder: str, lease_s: float) -> None:
        self._store, self._clock, self._lease_s = store, clock, lease_s
        self._silence = Silence(lease_s)
        self._is_new = True
        self.holder = holder
        self.look_every_s = lease_s * _LOOK
        self.term: Term | None = None

    def turn(self) -> None:
        """Renew the lease if it is held, else take it if it is free.

        Raises:
            QueueUnavailableError: the database refuses; the next turn tries again.
        """
        term = self.term
        if term is not None and not term.is_over:
            if self._clock() - term.renewed_at >= self._lease_s * _RENEW:
                self._renew(term)
        else:
            self.term = None
            self._seek()

    def release(self) -> None:
        """Give the lease back, so that another server leads at once.

        Raises:
            QueueUnavailableError: the database refuses; the others wait for the lease to run out.
        """
        term, self.term = self.term, None
        if term is not None and not term.is_over:
            term.is_over = True
            with self._store.write() as tx:
                tx.leaders.change(term.epoch, {"holder": ""})
            logger.info("leadership given back, epoch %d", term.epoch)

    def leader(self) -> Leader:
        """Who leads, as the database says.

        Raises:
            QueueUnavailableError: it does not.
        """
        with self._store.read() as tx:
            return tx.leaders.leader()

    def _renew(self, term: Term) -> None:
        began = self._clock()
        with self._store.write() as tx:
            is_ours = tx.leaders.beat(term.epoch, began)
        if is_ours:
            term.renewed_at = began
            return
        term.is_over, self.term = True, None
        logger.warning("leadership lost, epoch %d: another server leads, this one goes on answering", term.epoch)

    def _seek(self) -> None:
        leader, now = self.leader(), self._clock()
        # An embedded database has one server, and its file's lock proves that the one before is gone.
        is_heir = not self._store.is_shared or (self._is_new and leader.holder == self.holder)
        is_silent = self._silence.look(leader, now)
        self._is_new = False
        if is_silent or is_heir or not leader.holder:
            self._take(leader)

    def _take(self, leader: Leader) -> None:
        term = Term(self._store, self._clock, leader.epoch + 1, self._lease_s)
        now = term.renewed_at
        lease = {"epoch": term.epoch, "holder": self.holder, "beats": 0, "since": now, "renewed_at": now}
        with self._store.write() as tx:
            is_taken = tx.leaders.change(leader.epoch, lease, beats=leader.beats)
        if is_taken:
            self.term = term
            logger.info("leadership taken, epoch %d, after %s", term.epoch, leader.holder or "nobody")
