from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest

from segfleet.errors import SettingsError
from segfleet.settings import Home, Settings, default_home, ensure_token, read_token, service_address


@pytest.fixture
def home(tmp_path: Path) -> Home:
    home = Home(tmp_path / "home")
    home.create()
    return home


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_home_is_private_to_the_user(home: Home) -> None:
    assert [mode(p) for p in (home.root, home.storage, home.logs, home.mlflow_artifacts)] == [0o700] * 4
    assert sorted(p.name for p in home.root.iterdir()) == ["logs", "mlartifacts", "storage"]


def test_home_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SettingsError, match=r"file/home' cannot be written to: .*; choose another with --home"):
        Home(tmp_path / "file" / "home").create()


def test_token_is_long_private_and_kept(home: Home) -> None:
    old_mask = os.umask(0)
    try:
        token = ensure_token(home.token)
    finally:
        os.umask(old_mask)
    assert mode(home.token) == 0o600
    assert len(token) >= 43
    assert ensure_token(home.token) == read_token(home.token) == token
    assert ensure_token(home.ray_token) != token


@pytest.mark.parametrize("bits", [0o644, 0o640, 0o604, 0o620, 0o601])
def test_token_that_others_can_touch_is_refused(home: Home, bits: int) -> None:
    ensure_token(home.token)
    home.token.chmod(bits)
    with pytest.raises(SettingsError, match=rf"\(mode {bits:04o}\); run chmod 600"):
        read_token(home.token)


@pytest.mark.parametrize("bits", [0o600, 0o400])
def test_private_token_is_read(home: Home, bits: int) -> None:
    token = ensure_token(home.token)
    home.token.chmod(bits)
    assert read_token(home.token) == token


def test_missing_token_says_what_to_run(home: Home) -> None:
    with pytest.raises(SettingsError, match="No such file or directory; run 'segfleet up'"):
        read_token(home.token)


def test_address_comes_from_the_home(home: Home) -> None:
    token = ensure_token(home.token)
    home.state.write_text(json.dumps({"url": "http://127.0.0.1:8701"}))
    assert service_address(home, {}) == ("http://127.0.0.1:8701", token)


def test_environment_wins_over_the_home(home: Home) -> None:
    environment = {"SEGFLEET_URL": "http://127.0.0.1:9", "SEGFLEET_TOKEN": "t"}
    assert service_address(home, environment) == ("http://127.0.0.1:9", "t")


@pytest.mark.parametrize("state", [None, "{", "{}"])
def test_no_service_says_how_to_start_one(home: Home, state: str | None) -> None:
    if state is not None:
        home.state.write_text(state)
    with pytest.raises(SettingsError, match="start one with 'segfleet up' or set SEGFLEET_URL"):
        service_address(home, {})


def test_default_home(tmp_path: Path) -> None:
    assert default_home({"SEGFLEET_HOME": str(tmp_path)}).root == tmp_path
    assert default_home({}).root == Path.home() / ".segfleet"
    assert default_home({"SEGFLEET_HOME": ""}).root == Path.home() / ".segfleet"
    assert default_home({"SEGFLEET_HOME": "some/where"}).root.is_absolute()


def test_settings_from_environment(tmp_path: Path) -> None:
    environment = {"SEGFLEET_HOME": str(tmp_path), "SEGFLEET_PORT": "9000", "SEGFLEET_LEASE_S": "1.5"}
    settings = Settings.from_environment(environment)
    assert (settings.port, settings.url, settings.lease_s) == (9000, "http://127.0.0.1:9000", 1.5)
    assert settings.database_url == f"sqlite:///{tmp_path / 'segfleet.db'}"


def test_malformed_number_names_the_variable(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="SEGFLEET_POLL_S='soon' is not a number"):
        Settings.from_environment({"SEGFLEET_HOME": str(tmp_path), "SEGFLEET_POLL_S": "soon"})


def test_job_environment_holds_no_secret(tmp_path: Path) -> None:
    settings = Settings.from_environment({"SEGFLEET_HOME": str(tmp_path), "SEGFLEET_TOKEN": "t0p-secret"})
    assert "t0p-secret" not in json.dumps(settings.job_env)
    assert [name for name in settings.job_env if "TOKEN" in name or "CODE" in name] == []
