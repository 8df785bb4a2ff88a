from __future__ import annotations

import socket
import tempfile
from pathlib import Path

import pytest

from segfleet.cluster import components as parts
from segfleet.cluster.components import (
    choose_ports,
    components,
    forget_outside_ray_folder,
    ports_of,
    ray_folder,
)
from segfleet.cluster.ports import free_ports, is_free, require_free
from segfleet.errors import SettingsError
from segfleet.settings import Home, ensure_token


@pytest.fixture
def home(tmp_path: Path) -> Home:
    home = Home(tmp_path / "home")
    home.create()
    return home


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "tmp"
    folder.mkdir()
    monkeypatch.setattr(parts, "SHORT_FOLDER", folder)
    return folder


def test_every_part_listens_on_loopback_and_on_the_chosen_ports(home: Home, temporary: Path) -> None:
    ports = choose_ports(8700, {})
    ray, mlflow, service = components(home, ports)
    assert {"--node-ip-address=127.0.0.1", "--dashboard-host=127.0.0.1"} <= set(ray.command)
    assert ray.environment["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] == "0"
    assert "--host=127.0.0.1" in mlflow.command
    ray_text = " ".join([*ray.command, *(f"{name}={value}" for name, value in ray.environment.items())])
    assert all(f"{name}={port}" in ray_text for name, port in ports_of("ray", ports).items())
    assert service.environment["SEGFLEET_PORT"] == "8700"
    assert service.environment["SEGFLEET_RAY_ADDRESS"] == ray.address
    assert service.environment["SEGFLEET_MLFLOW_URI"] == mlflow.address


def test_no_secret_is_on_a_command_line_or_in_an_environment(home: Home, temporary: Path) -> None:
    secrets = {ensure_token(home.token), ensure_token(home.ray_token)}
    for part in components(home, choose_ports(8700, {})):
        words = [*part.command, *(value for value in part.environment.values() if value)]
        assert not [word for word in words if any(secret in word for secret in secrets)]
        assert part.environment["SEGFLEET_TOKEN"] is None


def test_ray_and_the_service_use_ray_s_token_authentication(home: Home, temporary: Path) -> None:
    ray, _, service = components(home, choose_ports(8700, {}))
    for part in (ray, service):
        assert part.environment["RAY_AUTH_MODE"] == "token"
        assert part.environment["RAY_AUTH_TOKEN_PATH"] == str(home.ray_token)
        assert part.environment["RAY_AUTH_TOKEN"] is None


def test_ports_differ_and_kept_ones_stay(home: Home) -> None:
    first = choose_ports(8700, {})
    assert len(set(first.values())) == len(first)
    kept = ports_of("ray", first)
    again = choose_ports(8800, kept)
    assert ports_of("ray", again) == kept
    assert len(set(again.values())) == len(again)


def test_a_fingerprint_changes_with_a_port(home: Home, temporary: Path) -> None:
    ports = choose_ports(8700, {})
    before = [part.fingerprint for part in components(home, ports)]
    assert before == [part.fingerprint for part in components(home, ports)]
    after = [part.fingerprint for part in components(home, {**ports, "mlflow": 1})]
    assert [old == new for old, new in zip(before, after, strict=True)] == [True, False, False]


def test_ray_s_folder_is_short_and_closed_to_others(home: Home, temporary: Path) -> None:
    deep = Home(home.root / ("long" * 20))
    deep.create()
    folder = ray_folder(deep)
    assert folder.parent.parent == temporary
    assert folder.parent.stat().st_mode & 0o077 == 0
    assert ray_folder(deep) == folder
    assert ray_folder(Home(deep.root / "other")) != folder


def test_ray_s_folder_outside_the_home_goes_and_one_inside_stays(home: Home, temporary: Path) -> None:
    deep = Home(home.root / ("long" * 20))
    deep.create()
    outside = ray_folder(deep)
    (outside / "session_2026").mkdir()
    forget_outside_ray_folder(deep)
    assert not outside.parent.exists()
    inside = Home(temporary / "h")
    inside.create()
    folder = ray_folder(inside)
    forget_outside_ray_folder(inside)
    assert folder.exists() == folder.is_relative_to(inside.root)


def test_ray_s_folder_does_not_depend_on_the_shell(home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deep = Home(home.root / ("long" * 20))
    deep.create()
    first = ray_folder(deep)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    assert ray_folder(deep) == first
    forget_outside_ray_folder(deep)
    assert not first.parent.exists()


def test_no_part_imports_from_the_users_folder(home: Home, temporary: Path) -> None:
    for part in components(home, choose_ports(8700, {})):
        assert part.command[1:3] == ("-P", "-m")


def test_an_open_folder_in_ray_s_place_is_refused(home: Home, temporary: Path) -> None:
    deep = Home(home.root / ("long" * 20))
    deep.create()
    ray_folder(deep).parent.chmod(0o755)
    with pytest.raises(SettingsError, match="not a private folder"):
        ray_folder(deep)


def test_a_port_in_use_is_refused_with_the_way_out() -> None:
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        port = busy.getsockname()[1]
        assert not is_free(port)
        with pytest.raises(SettingsError, match=f"port {port} .* --port"):
            require_free(port)
        (found,) = free_ports(1, preferred=(port,))
        assert found != port
    require_free(port)


def test_preferred_ports_come_first_and_taken_ones_never() -> None:
    first, second = free_ports(2)
    assert free_ports(2, preferred=(first, second), taken=frozenset({first}))[0] == second
    assert free_ports(1, preferred=(70_000, second)) == [second]
