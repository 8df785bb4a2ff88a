"""A service in a process of its own that really dies: killed before or after a commit, in the middle of a call to Ray,
or at any instruction. The cluster and its drivers live in the test's process and outlast it.

The two talk over a pipe: the test calls the queue's verbs, the service calls the cluster while it works.
"""

from __future__ import annotations

import inspect
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from operator import attrgetter
from pathlib import Path
from typing import Any, NoReturn

from factories import make_settings
from fakes import FakeClock, FakeLauncher
from segfleet.errors import LeadershipLostError
from segfleet.queue.dispatcher import Dispatcher
from segfleet.queue.leadership import Office, Term
from segfleet.queue.service import Queue
from segfleet.queue.store import Store, Transaction


class KilledError(Exception):
    """The service died before it answered; what was asked may have been done or not."""


@dataclass(frozen=True)
class Fate:
    """When a life of the service ends.

    Attributes:
        point: Function that writes, or `ray.submit` and its like; empty: any.
        when: `before` or `after` its commit or effect.
        skip: So many times it is passed unharmed.
        delay_s: After so long at the latest, at any instruction; 0: no bound.
    """

    point: str = ""
    when: str = "never"
    skip: int = 0
    delay_s: float = 0.0


class Storm:
    """A service that dies and is started again, and the cluster it works on.

    Args:
        root: Folder of its home.
        url: Its database.
        cpus: Of the cluster.
        settings: Of the service.
    """

    def __init__(self, root: Path, url: str, *, cpus: int = 2, **settings: Any) -> None:
        self.clock = FakeClock()
        self.ray = FakeLauncher(cpus=cpus, clock=self.clock)
        self.deaths: list[str] = []
        self.fate = Fate()
        self._root, self._url, self._settings = root, url, settings
        self._pid: int | None = None
        self._pipe: Connection | None = None
        self._reached = 0
        self.name = "server"

    @property
    def is_alive(self) -> bool:
        return self._pid is not None

    def start(self, fate: Fate | None = None) -> None:
        """Begin a life of the service."""
        self.fate, self._reached = fate or Fate(), 0
        self._pipe, theirs = Pipe()
        sys.stdout.flush()
        self._pid = os.fork()
        if self._pid == 0:
            self._pipe.close()
            _serve(theirs, self.name, self._root, self._url, self._settings, self.fate)
        theirs.close()

    def call(self, verb: str, *args: Any, **named: Any) -> Any:
        """Have the service do something at the test's time.

        Raises:
            KilledError: it died.
            Exception: what the verb raises.
        """
        assert self._pipe is not None
        try:
            self._pipe.send((verb, args, named, self.clock.now))
            while True:
                kind, *rest = self._pipe.recv()
                if kind == "answer":
                    return rest[0]
                if kind == "error":
                    raise rest[0]
                self._answer_as_ray(*rest)
        except (EOFError, ConnectionError) as error:
            self._bury()
            raise KilledError(verb) from error

    def insist(self, verb: str, *args: Any, **named: Any) -> Any:
        """The same by somebody who asks again when the line goes dead; the next life has no end set."""
        while True:
            try:
                return self.call(verb, *args, **named)
            except KilledError:
                self.start()

    def step(self, seconds: float = 0.5) -> None:
        """One turn of the dispatcher."""
        self.clock.advance(seconds)
        self.insist("step")

    def kill(self) -> None:
        """End the service's life from outside."""
        if self._pid is not None:
            os.kill(self._pid, signal.SIGKILL)
            self._bury()

    def _bury(self) -> None:
        assert self._pid is not None
        assert self._pipe is not None
        _, status = os.waitpid(self._pid, 0)
        self.deaths.append(f"{self.fate.point}:{self.fate.when}")
        self._pipe.close()
        self._pid = self._pipe = None
        # Anything else is a bug of the service, or of this harness.
        assert os.WIFSIGNALED(status), f"the service ended by itself with status {status}"

    def _answer_as_ray(self, method: str, args: tuple[Any, ...]) -> None:
        assert self._pipe is not None
        assert self._pid is not None
        dies = f"ray.{method}" == self.fate.point and self._reached >= self.fate.skip
        self._reached += f"ray.{method}" == self.fate.point
        if dies and self.fate.when == "before":
            os.kill(self._pid, signal.SIGKILL)
            return
        try:
            answer = ("value", getattr(self.ray, method)(*args))
        except Exception as error:
            answer = ("raise", error)
        if dies:
            os.kill(self._pid, signal.SIGKILL)
            return
        self._pipe.send(answer)


class _RemoteRay:
    """The cluster as the service sees it."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe

    def __getattr__(self, method: str) -> Callable[..., Any]:
        def ask(*args: Any) -> Any:
            self._pipe.send(("ray", method, args))
            kind, value = self._pipe.recv()
            if kind == "raise":
                raise value
            return value

        return ask


def _serve(pipe: Connection, name: str, root: Path, url: str, settings: dict[str, Any], fate: Fate) -> NoReturn:
    """A life of the service: answers until it is killed. Never returns into the test."""
    logging.disable()
    try:
        Store.write = _mortal(fate)  # type: ignore[method-assign]
        if fate.delay_s:
            # Not handled by anybody, so the end comes between any two instructions.
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.setitimer(signal.ITIMER_REAL, fate.delay_s)
        clock = FakeClock()
        queue: Queue | None = None
        term: Term | None = None
        while True:
            verb, args, named, clock.now = pipe.recv()
            if queue is None:
                queue = Queue(Store(url), clock, root / "storage")
                office = Office(queue.store, clock, name, 15.0)
            try:
                if verb == "step":
                    office.turn()
                    if office.term is not term and office.term is not None:
                        values = make_settings(root, **settings)
                        dispatcher = Dispatcher(queue, office.term, _RemoteRay(pipe), values)  # type: ignore[arg-type]
                    term = office.term
                    if term is not None:
                        # As the dispatcher's loop: whoever leads no longer goes on answering.
                        with suppress(LeadershipLostError):
                            dispatcher.step(clock.now)
                    answer: Any = None
                else:
                    answer = attrgetter(verb)(queue)(*args, **named)
            except Exception as error:
                pipe.send(("error", error))
            else:
                pipe.send(("answer", answer))
    except (EOFError, ConnectionError):
        os._exit(0)
    except BaseException:
        import traceback

        traceback.print_exc()
        os._exit(70)


_FENCED = inspect.unwrap(Term.write).__code__


def _mortal(fate: Fate) -> Callable[[Store], Any]:
    """`Store.write`, with the end of a life in it."""
    whole, passed = Store.write, [0]

    @contextmanager
    def write(self: Store) -> Iterator[Transaction]:
        frame = sys._getframe(2)
        # The leader's fenced transactions are those of who asks for one.
        point = (sys._getframe(4) if frame.f_code is _FENCED else frame).f_code.co_name
        dies = False
        with whole(self) as tx:
            yield tx
            if fate.point in ("", point) and fate.when in ("before", "after"):
                dies = passed[0] >= fate.skip
                passed[0] += 1
            if dies and fate.when == "before":
                os.kill(os.getpid(), signal.SIGKILL)
        if dies:
            os.kill(os.getpid(), signal.SIGKILL)

    return write
