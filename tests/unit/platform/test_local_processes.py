from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import uuid4

import psutil
import pytest

from segfleet.cluster.processes import MARK, end_tree, has_ended, marked, marked_root, memory_mib, spawn

SLEEP = "import time; time.sleep(60)"
# Ignores SIGTERM, and has a child in a session of its own that ignores it too.
STUBBORN = (
    "import signal, subprocess, sys, time; signal.signal(15, signal.SIG_IGN);"
    f"subprocess.Popen([sys.executable, '-c', 'import signal; signal.signal(15, signal.SIG_IGN); {SLEEP}'],"
    "start_new_session=True); print('ready', flush=True); time.sleep(60)"
)


@pytest.fixture
def mark() -> Iterator[str]:
    mark = f"test-{uuid4().hex}:part"
    yield mark
    end_tree(None, mark, 0.0)


def start(code: str, mark: str, log: Path) -> psutil.Popen:
    return spawn([sys.executable, "-c", code], {}, mark, log)


def until(condition: Callable[[], bool], timeout_s: float = 10.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_tree_is_found_by_its_mark_and_ended_to_the_last(mark: str, tmp_path: Path) -> None:
    log = tmp_path / "log"
    root = start(STUBBORN, mark, log)
    until(lambda: log.read_text() == "ready\n")
    assert len(marked(mark)) == 2
    end_tree(root, mark, grace_s=0.2)
    assert marked(mark) == []
    assert has_ended(root)


def test_what_outlives_its_root_is_found_and_ended(mark: str, tmp_path: Path) -> None:
    log = tmp_path / "log"
    root = start(STUBBORN, mark, log)
    until(lambda: log.read_text() == "ready\n")
    root.kill()
    until(lambda: has_ended(root))
    assert marked_root(root.pid, mark) is None
    assert len(marked(mark)) == 1
    end_tree(None, mark, grace_s=0.0)
    assert marked(mark) == []


def test_a_polite_tree_gets_no_kill(mark: str, tmp_path: Path) -> None:
    log = tmp_path / "log"
    polite = "import signal, sys; signal.signal(15, lambda *_: sys.exit(print('bye', flush=True)));"
    root = start(f"{polite} print('ready', flush=True); {SLEEP}", mark, log)
    until(lambda: log.read_text() == "ready\n")
    end_tree(root, mark, grace_s=10.0)
    assert log.read_text() == "ready\nbye\n"


def test_another_process_of_the_same_id_is_not_taken_for_ours(mark: str, tmp_path: Path) -> None:
    root = start(SLEEP, mark, tmp_path / "log")
    until(lambda: marked(mark) != [])
    assert marked_root(root.pid, mark) == root
    assert marked_root(root.pid, "another:part") is None
    assert marked_root(psutil.Process().pid, mark) is None
    assert marked_root(2**22 + 1, mark) is None
    assert memory_mib(mark) > 1
    end_tree(root, mark, grace_s=5.0)


def test_a_child_gets_its_own_session_mark_and_log(mark: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEGFLEET_TOKEN", "secret")
    log = tmp_path / "log"
    log.write_text("before\n")
    code = f"import os; print(os.getsid(0) == os.getpid(), os.environ['{MARK}'], os.environ.get('SEGFLEET_TOKEN'))"
    root = spawn([sys.executable, "-c", code], {"SEGFLEET_TOKEN": None}, mark, log)
    until(lambda: has_ended(root))
    assert log.read_text() == f"before\nTrue {mark} None\n"


def test_a_child_does_not_work_in_the_users_folder(mark: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere, log = tmp_path / "elsewhere", tmp_path / "logs" / "log"
    for folder in (elsewhere, log.parent):
        folder.mkdir()
    monkeypatch.chdir(elsewhere)
    start("import os; print(os.getcwd())", mark, log).wait(timeout=10)
    assert log.read_text() == f"{log.parent}\n"


def test_a_log_that_has_grown_large_moves_aside(mark: str, tmp_path: Path) -> None:
    log = tmp_path / "log"
    with log.open("wb") as file:
        file.truncate((16 << 20) + 1)
    root = start("print('new')", mark, log)
    until(lambda: has_ended(root))
    assert log.read_text() == "new\n"
    assert (tmp_path / "log.1").stat().st_size == (16 << 20) + 1


def test_what_a_child_writes_is_private(mark: str, tmp_path: Path) -> None:
    child = start(f"open({str(tmp_path / 'made')!r}, 'w').close()", mark, tmp_path / "log")
    child.wait(timeout=10)
    assert (tmp_path / "made").stat().st_mode & 0o077 == 0
