from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from segfleet.cli.local import _up_detached
from segfleet.cluster import local
from segfleet.cluster import ports as local_ports
from segfleet.cluster.components import Component
from segfleet.cluster.local import Stack, down, restart_delay_s, status, up
from segfleet.cluster.ports import free_ports
from segfleet.cluster.processes import marked
from segfleet.cluster.state import State, exclusive
from segfleet.errors import SettingsError
from segfleet.settings import Home

SLEEP = (sys.executable, "-c", "import time; time.sleep(60)")


def make_component(name: str, command: tuple[str, ...] = SLEEP, **changes: object) -> Component:
    fields = {"title": name.title(), "environment": {}, "address": f"http://{name}", "answers": lambda: True}
    return Component(**{"name": name, "command": command, "survives": name != "service", **fields, **changes})  # type: ignore[arg-type]


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home")


@pytest.fixture
def parts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[dict[str, Component]]:
    """The parts that are started, in the place of Ray, MLflow and the service."""
    found = {name: make_component(name) for name in ("ray", "mlflow", "service")}

    def fake(home: Home, ports: Mapping[str, int]) -> tuple[Component, ...]:
        return tuple(found.values())

    monkeypatch.setattr(local, "components", fake)
    monkeypatch.setattr(local, "restart_delay_s", lambda deaths: 0.0)
    monkeypatch.setattr(local, "_POLL_S", 0.02)
    yield found
    down(Home(tmp_path / "home"), lambda line: None)


def run_up(home: Home, during: Callable[[State], None]) -> list[str]:
    """Run a stack until it is ready, do something, and stop it."""
    said: list[str] = []
    stop = threading.Event()

    def ready(state: State) -> None:
        try:
            during(state)
        finally:
            stop.set()

    up(home, local.choose_ports(0, {})["mlflow"], stop, said.append, ready)
    return said


def pids(state: State) -> dict[str, int]:
    return {name: process.pid for name, process in state.processes.items()}


@pytest.mark.parametrize(("deaths", "delay_s"), [(1, 1.0), (2, 2.0), (5, 16.0), (7, 60.0), (500, 60.0)])
def test_restarts_come_ever_slower_up_to_a_minute(deaths: int, delay_s: float) -> None:
    assert restart_delay_s(deaths) == delay_s


def test_all_parts_run_until_the_stop_and_none_after_it(home: Home, parts: dict[str, Component]) -> None:
    seen: list[State] = []

    def during(state: State) -> None:
        seen.append(state)
        assert State.load(home) == state
        assert state.ready
        assert all(part.answers for part in status(home))
        assert all(part.pid for part in status(home))
        with pytest.raises(SettingsError, match="already running"):
            run_up(home, seen.append)

    said = run_up(home, during)
    assert len(seen) == 1
    assert [line.split(":")[0] for line in said] == ["Ray", "Mlflow", "Service", "stopping"]
    assert not any(marked(seen[0].mark(name)) for name in parts)
    assert State.load(home) is None
    assert status(home) == []


def test_a_part_that_ends_while_starting_is_named_with_the_end_of_its_log(
    home: Home, parts: dict[str, Component]
) -> None:
    command = (sys.executable, "-c", "print('no such option'); raise SystemExit(3)")
    parts["mlflow"] = make_component("mlflow", command, answers=lambda: False)
    with pytest.raises(SettingsError, match=r"Mlflow ended while starting(?s:.*)no such option"):
        run_up(home, lambda state: None)
    assert State.load(home) is None


def test_a_part_that_stays_silent_is_given_up(
    home: Home, parts: dict[str, Component], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "ANSWER_TIMEOUT_S", 0.0)
    parts["ray"] = make_component("ray", answers=lambda: False)
    with pytest.raises(SettingsError, match="Ray does not answer"):
        run_up(home, lambda state: None)


def test_a_dead_part_is_started_again(home: Home, parts: dict[str, Component]) -> None:
    home.create()
    stop = threading.Event()
    said: list[str] = []
    before: dict[str, int] = {}

    def stop_once_restarted() -> None:
        state = State.load(home)
        if state is not None and pids(state)["service"] != before["service"]:
            stop.set()

    with exclusive(home):
        stack = Stack(home, said.append)
        try:
            stack.start(local.choose_ports(0, {})["mlflow"], stop)
            before |= pids(stack.state)
            os.kill(before["service"], signal.SIGKILL)
            stack.supervise(Turns(stop, stop_once_restarted))
            after = pids(stack.state)
        finally:
            stack.stop()
    assert after["service"] != before["service"]
    assert (after["ray"], after["mlflow"]) == (before["ray"], before["mlflow"])
    assert "Service has ended; starting it again in 0 s, see logs/service.log" in said


class Turns(threading.Event):
    """An event that looks around before each wait, and gives up after a while."""

    def __init__(self, inner: threading.Event, look: Callable[[], None]) -> None:
        super().__init__()
        self.inner, self.look, self.turns = inner, look, 0

    def wait(self, timeout: float | None = None) -> bool:
        self.look()
        self.turns += 1
        assert self.turns < 500, "nothing was started again"
        return self.inner.wait(timeout)


def abandon(home: Home, port: int | None = None) -> State:
    """A stack whose supervisor was killed: everything runs, nobody holds the lock."""
    home.create()
    with exclusive(home):
        stack = Stack(home, lambda line: None)
        stack.start(port or local.choose_ports(0, {})["mlflow"], threading.Event())
        ABANDONED.extend(running.process for running in stack._running.values())
        return stack.state


ABANDONED: list[psutil.Popen] = []


@pytest.fixture(autouse=True)
def _reap() -> Iterator[None]:
    yield
    for process in ABANDONED:
        with contextlib.suppress(psutil.Error):
            process.kill()
            process.wait(timeout=10)
        # Reaped under another handle, as init reaps a killed supervisor's children: this one learns it here.
        process.poll()
    ABANDONED.clear()


def test_ray_and_mlflow_of_a_killed_up_are_taken_over_and_the_service_replaced(
    home: Home, parts: dict[str, Component]
) -> None:
    old = abandon(home)
    new: list[State] = []
    said = run_up(home, new.append)
    assert pids(new[0])["ray"] == pids(old)["ray"]
    assert pids(new[0])["mlflow"] == pids(old)["mlflow"]
    assert pids(new[0])["service"] != pids(old)["service"]
    assert "Ray: taken over, http://ray" in said
    assert {name: port for name, port in new[0].ports.items() if name != "service"} == {
        name: port for name, port in old.ports.items() if name != "service"
    }
    assert not any(marked(old.mark(name)) for name in parts)


@pytest.mark.parametrize("change", [{"answers": lambda: False}, {"environment": {"NEW": "1"}}], ids=["silent", "other"])
def test_what_does_not_answer_or_was_started_otherwise_is_not_taken_over(
    change: dict[str, object], home: Home, parts: dict[str, Component]
) -> None:
    old = abandon(home)
    parts["ray"] = make_component("ray", **change)
    asked = iter([False])
    if "answers" in change:
        parts["ray"] = make_component("ray", answers=lambda: next(asked, True))
    new: list[State] = []
    run_up(home, new.append)
    assert pids(new[0])["ray"] != pids(old)["ray"]
    assert pids(new[0])["mlflow"] == pids(old)["mlflow"]


@pytest.mark.parametrize("trouble", ["busy port", "mute service"])
def test_an_up_that_fails_leaves_what_it_took_over_for_the_next_one(
    trouble: str, home: Home, parts: dict[str, Component]
) -> None:
    old = abandon(home)
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        port = busy.getsockname()[1]
        if trouble == "mute service":
            busy.close()
            parts["service"] = make_component("service", (sys.executable, "-c", "raise SystemExit(3)"))
            parts["service"] = replace(parts["service"], answers=lambda: False)
        with pytest.raises(SettingsError, match=r"in use|ended while starting"):
            up(home, port, threading.Event(), lambda line: None, lambda state: None)
    kept = State.load(home)
    assert kept is not None
    assert {name: bool(marked(old.mark(name))) for name in parts} == {"ray": True, "mlflow": True, "service": False}
    parts["service"] = make_component("service")
    new: list[State] = []
    run_up(home, new.append)
    assert [pids(new[0])[name] for name in ("ray", "mlflow")] == [pids(old)[name] for name in ("ray", "mlflow")]


def test_the_orphaned_service_s_own_port_is_free_for_the_next_up(home: Home, parts: dict[str, Component]) -> None:
    (port,) = free_ports(1)
    listen = f"import socket, time; s = socket.create_server(('127.0.0.1', {port})); time.sleep(60)"
    parts["service"] = make_component(
        "service", (sys.executable, "-c", listen), answers=lambda: not local_ports.is_free(port)
    )
    abandon(home, port)
    stop = threading.Event()
    up(home, port, stop, lambda line: None, lambda state: stop.set())


def test_a_second_detached_up_leaves_the_first_one_s_log(
    home: Home, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    home.create()
    log = home.logs / "up.log"
    log.write_text("of the first\n")
    with exclusive(home), pytest.raises(SettingsError, match="already running"):
        _up_detached(home, 1)
    assert log.read_text() == "of the first\n"


def test_down_ends_what_a_killed_up_has_left(home: Home, parts: dict[str, Component]) -> None:
    old = abandon(home)
    said: list[str] = []
    assert down(home, said.append)
    assert not any(marked(old.mark(name)) for name in parts)
    assert State.load(home) is None
    assert not down(home, said.append)
    assert len(said) == 1


def test_down_on_a_home_that_never_was_does_nothing(home: Home) -> None:
    assert not down(home, lambda line: None)
    assert not home.root.exists()


def test_old_sessions_of_ray_are_removed_but_for_the_last(tmp_path: Path) -> None:
    names = ["session_2026-01-01_1", "session_2026-01-02_2", "session_latest", "other"]
    for name in names:
        (tmp_path / name).mkdir()
    local._forget_old_sessions(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names[1:])
