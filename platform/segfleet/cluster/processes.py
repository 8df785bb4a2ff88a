"""Start, find and end whole trees of processes.

Ray starts some twenty processes, several of which outlive the one that was started, move to sessions of their own or
change their names. What they cannot lose is their environment: every tree carries a mark in it, and the mark finds
all of it again, also after the process that started it was killed.
"""

from __future__ import annotations

import contextlib
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import psutil

from segfleet.settings import child_environment

MARK = "SEGFLEET_STACK"

_LOG_LIMIT = 16 << 20
_POLL_S = 0.1
_KILL_WAIT_S = 10.0


def spawn(command: Sequence[str], environment: Mapping[str, str | None], mark: str, log: Path) -> psutil.Popen:
    """Start a process in a session of its own, so that the terminal's Ctrl-C does not reach it.

    It works in its log's folder, not in the user's: Ray lets its workers import from where its drivers run.

    Args:
        command: Program and arguments.
        environment: Changes to this process's environment; None removes a variable.
        mark: What to find the process and all its descendants by.
        log: Takes stdout and stderr, appended; above 16 MiB the old one moves to NAME.1 first.

    Raises:
        OSError: the program cannot be started or the log not written.
    """
    if log.exists() and log.stat().st_size > _LOG_LIMIT:
        log.replace(log.with_name(f"{log.name}.1"))
    # SPT_NOENV: setproctitle would write a long title over the environment, and with it over the mark.
    env = child_environment({**environment, MARK: mark, "SPT_NOENV": "1"})
    with log.open("ab") as out:
        return psutil.Popen(
            command,
            env=env,
            cwd=log.parent,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            start_new_session=True,
            umask=0o077,  # databases, logs and checkpoints are the user's own, whatever the home folder's mode
        )


def marked(mark: str) -> list[psutil.Process]:
    """Every living process that carries the mark."""
    found = []
    for process in psutil.process_iter():
        # Processes of other users, and those that end while being looked at, are none of ours.
        with contextlib.suppress(psutil.Error, OSError):
            if process.environ().get(MARK) == mark and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def marked_root(pid: int, mark: str) -> psutil.Process | None:
    """The process of that id if it still is the one that was started under the mark."""
    try:
        process = psutil.Process(pid)
        return process if process.environ().get(MARK) == mark and not has_ended(process) else None
    except (psutil.Error, OSError):
        return None


def has_ended(process: psutil.Process) -> bool:
    """Whether the process is gone; reaps it if it was a child, and counts a zombie of somebody else as gone."""
    try:
        process.wait(timeout=0)
    except psutil.TimeoutExpired:
        try:
            return bool(process.status() == psutil.STATUS_ZOMBIE)
        except psutil.NoSuchProcess:
            return True
    return True


def end_tree(root: psutil.Process | None, mark: str, grace_s: float) -> None:
    """Ask the root to end, then kill what is left of the tree.

    Args:
        root: Gets the SIGTERM; None: every process of the tree gets it.
        mark: Of the tree.
        grace_s: How long to wait before SIGKILL, seconds.
    """
    _signal([root] if root is not None else marked(mark), psutil.Process.terminate)
    if _wait_until_gone(root, mark, grace_s):
        return
    deadline = time.monotonic() + _KILL_WAIT_S
    while time.monotonic() < deadline:
        # Again and again: a dying process may just have started another one.
        _signal(marked(mark), psutil.Process.kill)
        if _wait_until_gone(root, mark, 2 * _POLL_S):
            return


def memory_mib(mark: str) -> float:
    """Memory of the tree in MiB, shared pages counted once (PSS) where the system tells, else resident."""
    total = 0
    for process in marked(mark):
        with contextlib.suppress(psutil.Error, OSError):
            info = process.memory_full_info()
            total += getattr(info, "pss", info.rss)
    return total / (1 << 20)


def _wait_until_gone(root: psutil.Process | None, mark: str, timeout_s: float) -> bool:
    deadline = time.monotonic() + timeout_s
    while True:
        if (root is None or has_ended(root)) and not marked(mark):
            return True
        if time.monotonic() > deadline:
            return False
        time.sleep(_POLL_S)


def _signal(processes: Sequence[psutil.Process], send: Callable[[psutil.Process], None]) -> None:
    for process in processes:
        with contextlib.suppress(psutil.Error):
            send(process)
