"""The embedded stack: Ray, MLflow and the service on this machine, kept running by one supervising process.

The supervisor holds the home's lock, writes what it started to state.json, starts again whatever dies, and ends
everything when it is told to. If it is killed, its children live on: the next `up` takes Ray and MLflow over, so that
running jobs go on, and replaces the service.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import psutil

from segfleet.access.tokens import HOME_PREFIX
from segfleet.cluster.components import (
    GRACE_S,
    Component,
    choose_ports,
    components,
    forget_outside_ray_folder,
    ports_of,
    ray_folder,
)
from segfleet.cluster.ports import require_free
from segfleet.cluster.processes import end_tree, has_ended, marked, marked_root, memory_mib, spawn
from segfleet.cluster.state import Started, State, exclusive, holder, is_held
from segfleet.errors import SettingsError
from segfleet.settings import Home, ensure_token

ANSWER_TIMEOUT_S = 180.0
DOWN_TIMEOUT_S = 90.0
STEADY_S = 60.0
LONGEST_DELAY_S = 60.0

_POLL_S = 0.25
_LOG_TAIL_LINES = 15

Say = Callable[[str], None]


def restart_delay_s(deaths: int) -> float:
    """Pause before a part is started again after so many deaths in a row: 1 s, doubling to a minute."""
    return min(2.0 ** (deaths - 1), LONGEST_DELAY_S)


@dataclass(slots=True)
class Running:
    """A component and the process that is it at the moment; `adopted`: an earlier `up` started it."""

    component: Component
    process: psutil.Process
    since: float
    deaths: int = 0
    adopted: bool = False
    restart_at: float | None = None


def up(home: Home, port: int, stop: threading.Event, say: Say, ready: Callable[[State], None]) -> None:
    """Start everything, keep it running until `stop` is set, end everything.

    Args:
        home: The home folder; made if it is not there.
        port: The service's port.
        stop: Ends the stack.
        say: Takes lines for people.
        ready: Called once every part has answered.

    Raises:
        SettingsError: the home is in use or not writable, the port is in use, or a part does not start.
    """
    home.create()
    with exclusive(home):
        stack = Stack(home, say)
        try:
            stack.start(port, stop)
        except BaseException:
            stack.give_up()
            raise
        try:
            if not stop.is_set():
                ready(stack.state)
                stack.supervise(stop)
        finally:
            stack.stop()


def down(home: Home, say: Say) -> bool:
    """End the stack of a home, whether or not its supervisor still lives.

    Returns:
        Whether anything was running.

    Raises:
        SettingsError: the supervisor cannot be ended.
    """
    was_held = is_held(home)
    if was_held:
        _end_supervisor(home, say)
    state = State.load(home)
    if state is None:
        return was_held
    with exclusive(home):
        found = any(marked(state.mark(name)) for name in GRACE_S)
        if found:
            say("ending what a killed 'segfleet up' has left")
        _end_all(state)
        forget_outside_ray_folder(home)
        home.state.unlink(missing_ok=True)
    return was_held or found


@dataclass(frozen=True, slots=True)
class PartStatus:
    """One line of `segfleet status`.

    Attributes:
        name: ray, mlflow or service.
        address: Base URL.
        pid: Process id, None if it is not running.
        answers: Whether it is ready for work.
        memory_mib: Of all its processes, shared pages counted once, MiB.
    """

    name: str
    address: str
    pid: int | None
    answers: bool
    memory_mib: float


def status(home: Home) -> list[PartStatus]:
    """How the parts of the home's stack are; empty if none was started."""
    state = State.load(home)
    if state is None:
        return []
    found = []
    for component in components(home, state.ports):
        mark = state.mark(component.name)
        started = state.processes.get(component.name)
        root = marked_root(started.pid, mark) if started else None
        found.append(
            PartStatus(
                name=component.name,
                address=component.address,
                pid=root.pid if root else None,
                answers=root is not None and component.answers(),
                memory_mib=round(memory_mib(mark), 1),
            )
        )
    return found


class Stack:
    """The running parts of one home; its lock must be held."""

    def __init__(self, home: Home, say: Say) -> None:
        self.home, self._say = home, say
        self._running: dict[str, Running] = {}
        self.state = State(stack=secrets.token_hex(8), url="", up_pid=os.getpid(), ports={})

    def start(self, port: int, stop: threading.Event) -> None:
        """Take over what a killed supervisor left, start the rest, and wait until all of it answers.

        Raises:
            SettingsError: the port is in use, or a part ends or stays silent; names its log.
        """
        begun = time.monotonic()
        ensure_token(self.home.token, HOME_PREFIX)
        ensure_token(self.home.ray_token)
        old = State.load(self.home)
        if old is not None:
            # The home's own orphaned service may hold the port.
            _end_parts_to_replace(self.home, old)
        require_free(port)
        ports = choose_ports(port, {} if old is None else self._take_over(old))
        self.state = replace(self.state, url=f"http://127.0.0.1:{port}", ports=ports)
        self.state.save(self.home)
        waiting = []
        for component in components(self.home, ports):
            if component.name not in self._running:
                self._start(component)
                waiting.append(component)
        self._await_answers(waiting, begun, stop)
        self.state = replace(self.state, ready=True)
        self.state.save(self.home)

    def supervise(self, stop: threading.Event) -> None:
        """Start again whatever dies, until `stop` is set."""
        while not stop.wait(_POLL_S):
            for running in self._running.values():
                self._look_after(running, time.monotonic())

    def stop(self) -> None:
        """End every part; the state file goes last, so that an interrupted stop can be finished by `down`."""
        if self._running:
            self._say("stopping")
        _end_all(self.state, {name: running.process for name, running in self._running.items()})
        self._running.clear()
        forget_outside_ray_folder(self.home)
        self.home.state.unlink(missing_ok=True)

    def give_up(self) -> None:
        """After a failed `start`: end what it has started; what it took over goes on, for the next `up` or `down`."""
        for name, grace_s in GRACE_S.items():
            running = self._running.get(name)
            if running is not None and not running.adopted:
                end_tree(running.process, self.state.mark(name), grace_s)
        kept = {name: self.state.processes[name] for name, running in self._running.items() if running.adopted}
        self._running.clear()
        if kept:
            replace(self.state, processes=kept).save(self.home)
        elif self.state.url:
            self.stop()

    def _take_over(self, old: State) -> dict[str, int]:
        """Adopt what can go on, end the rest; returns the ports in use by what was adopted."""
        # The old mark stays in use: it is in the environment of what goes on.
        self.state = replace(self.state, stack=old.stack)
        kept: dict[str, int] = {}
        for component in components(self.home, old.ports):
            root = self._adoptable(component, old)
            if root is None:
                end_tree(None, old.mark(component.name), GRACE_S[component.name])
                continue
            self._say(f"{component.title}: taken over, {component.address}")
            self._running[component.name] = Running(component, root, time.monotonic(), adopted=True)
            self.state = self.state.with_process(component.name, old.processes[component.name])
            kept |= ports_of(component.name, old.ports)
        return kept

    def _adoptable(self, component: Component, old: State) -> psutil.Process | None:
        started = old.processes.get(component.name)
        if started is None or not component.survives or started.fingerprint != component.fingerprint:
            return None
        root = marked_root(started.pid, old.mark(component.name))
        return root if root is not None and component.answers() else None

    def _start(self, component: Component) -> None:
        if component.name == "ray":
            _forget_old_sessions(ray_folder(self.home))
        log = self.home.logs / f"{component.name}.log"
        try:
            process = spawn(component.command, component.environment, self.state.mark(component.name), log)
        except OSError as error:
            raise SettingsError(f"{component.title} cannot be started: {error.strerror}") from error
        deaths = self._running[component.name].deaths if component.name in self._running else 0
        self._running[component.name] = Running(component, process, time.monotonic(), deaths)
        self.state = self.state.with_process(component.name, Started(process.pid, component.fingerprint))
        self.state.save(self.home)

    def _await_answers(self, waiting: list[Component], begun: float, stop: threading.Event) -> None:
        while waiting and not stop.wait(_POLL_S):
            for component in list(waiting):
                elapsed = time.monotonic() - begun
                log = self.home.logs / f"{component.name}.log"
                if has_ended(self._running[component.name].process):
                    raise SettingsError(f"{component.title} ended while starting; {log} ends with\n{_tail(log)}")
                if component.answers():
                    waiting.remove(component)
                    self._say(f"{component.title}: {component.address} ({elapsed:.1f} s)")
                elif elapsed > ANSWER_TIMEOUT_S:
                    raise SettingsError(f"{component.title} does not answer after {elapsed:.0f} s; see {log}")

    def _look_after(self, running: Running, now: float) -> None:
        component = running.component
        if running.restart_at is None:
            if not has_ended(running.process):
                return
            running.deaths = 1 if now - running.since > STEADY_S else running.deaths + 1
            delay_s = restart_delay_s(running.deaths)
            running.restart_at = now + delay_s
            self._say(
                f"{component.title} has ended; starting it again in {delay_s:.0f} s, see logs/{component.name}.log"
            )
        elif now >= running.restart_at:
            end_tree(None, self.state.mark(component.name), GRACE_S[component.name])
            try:
                self._start(component)
            except (SettingsError, OSError) as error:
                running.deaths += 1
                running.restart_at = now + restart_delay_s(running.deaths)
                self._say(f"{component.title} could not be started again: {error}")


def _end_parts_to_replace(home: Home, old: State) -> None:
    for component in components(home, old.ports):
        if not component.survives:
            end_tree(None, old.mark(component.name), GRACE_S[component.name])


def _end_all(state: State, processes: Mapping[str, psutil.Process] | None = None) -> None:
    for name, grace_s in GRACE_S.items():
        mark = state.mark(name)
        root = (processes or {}).get(name)
        if root is None and name in state.processes:
            root = marked_root(state.processes[name].pid, mark)
        end_tree(root, mark, grace_s)


def _end_supervisor(home: Home, say: Say) -> None:
    pid = holder(home.lock)
    if pid is None:
        raise SettingsError(f"lock {str(home.lock)!r} is held by an unknown process; try again")
    say(f"asking 'segfleet up' (pid {pid}) to stop")
    deadline = time.monotonic() + DOWN_TIMEOUT_S
    _send(pid, signal.SIGTERM)
    while is_held(home):
        if time.monotonic() > deadline:
            say(f"pid {pid} does not stop; killing it")
            _send(pid, signal.SIGKILL)
            deadline = time.monotonic() + DOWN_TIMEOUT_S
        time.sleep(_POLL_S)


def _send(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return
    except PermissionError as error:
        raise SettingsError(f"'segfleet up' (pid {pid}) belongs to another user; ask its owner") from error


def _forget_old_sessions(folder: Path) -> None:
    """Remove the sessions of Rays that ended, all but the last: their logs are the size of their jobs' output."""
    sessions = sorted(path for path in folder.glob("session_2*") if path.is_dir() and not path.is_symlink())
    for session in sessions[:-1]:
        shutil.rmtree(session, ignore_errors=True)


def _tail(log: Path) -> str:
    try:
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return "(no log)"
    return "\n".join(lines[-_LOG_TAIL_LINES:])
