from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest

from segfleet.address import authorities, service_address
from segfleet.errors import SettingsError
from segfleet.settings import Home, Settings, default_home, ensure_token, read_token


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


@pytest.mark.parametrize("content", [b"", b"\n", b"short\n", b"\xff" * 40, b"with space " * 4])
def test_a_file_without_a_token_is_refused(home: Home, content: bytes) -> None:
    home.token.write_bytes(content)
    home.token.chmod(0o600)
    for read in (read_token, ensure_token):
        with pytest.raises(SettingsError, match="holds no token; remove it"):
            read(home.token)


def test_a_token_that_could_not_be_written_leaves_no_file(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as broken:
        broken.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            ensure_token(home.token)
    assert sorted(p.name for p in home.root.iterdir()) == ["logs", "mlartifacts", "storage"]
    assert ensure_token(home.token) == read_token(home.token)


def test_a_token_that_another_process_made_meanwhile_is_kept(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = ensure_token(home.token)
    monkeypatch.setattr(Path, "exists", lambda path: False)
    assert ensure_token(home.token) == theirs


@pytest.mark.parametrize("bits", [0o770, 0o707, 0o777, 0o702])
def test_a_home_that_others_can_write_to_is_refused(home: Home, bits: int) -> None:
    home.root.chmod(bits)
    with pytest.raises(SettingsError, match=rf"mode {bits:04o}\); run chmod go-w"):
        home.create()
    home.root.chmod(0o755)
    home.create()


def test_what_belongs_to_another_user_is_refused(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    ensure_token(home.token)
    monkeypatch.setattr(os, "getuid", lambda: home.root.stat().st_uid + 1)
    with pytest.raises(SettingsError, match="not yours alone"):
        home.create()
    with pytest.raises(SettingsError, match="belongs to another user"):
        read_token(home.token)


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


def test_the_home_s_token_goes_to_no_other_machine(home: Home) -> None:
    token = ensure_token(home.token)
    for url in ("http://evil.example:8700", "https://127.0.0.1.evil.example", "http://127.0.0.1@evil.example/"):
        with pytest.raises(SettingsError, match="set SEGFLEET_TOKEN"):
            service_address(home, {"SEGFLEET_URL": url})
        with pytest.raises(SettingsError, match="set SEGFLEET_TOKEN"):
            service_address(home, {}, url=url)
    for url in ("http://127.0.0.1:9", "http://localhost:9", "http://[::1]:9"):
        assert service_address(home, {"SEGFLEET_URL": url}) == (url, token)


def test_what_is_given_needs_no_home(tmp_path: Path) -> None:
    nowhere = Home(tmp_path / "nowhere")
    assert service_address(nowhere, {"SEGFLEET_TOKEN": "t"}, url="http://far:1") == ("http://far:1", "t")
    assert service_address(nowhere, {"SEGFLEET_URL": "http://far:1"}, token="t") == ("http://far:1", "t")


@pytest.mark.parametrize("url", ["http://[::1", "http://h:port", "127.0.0.1:8700", "ftp://h", "http://", "nonsense"])
def test_a_malformed_address_is_told(home: Home, url: str) -> None:
    with pytest.raises(SettingsError, match="is no address of a service"):
        service_address(home, {"SEGFLEET_URL": url})


@pytest.mark.parametrize("state", [None, "{", "{}", "[]"])
def test_no_service_says_how_to_start_one(home: Home, state: str | None) -> None:
    if state is not None:
        home.state.write_text(state)
    with pytest.raises(SettingsError, match="start one with 'segfleet up' or set SEGFLEET_URL"):
        service_address(home, {})


def test_own_authorities_are_believed_alone(tmp_path: Path) -> None:
    assert authorities({}) is True
    assert authorities({"SEGFLEET_CA_FILE": ""}) is True
    (tmp_path / "ca.pem").write_text("no certificate")
    for name in ("ca.pem", "missing.pem"):
        with pytest.raises(SettingsError, match=r"SEGFLEET_CA_FILE=.*holds no certificates"):
            authorities({"SEGFLEET_CA_FILE": str(tmp_path / name)})


@pytest.mark.parametrize("url", ["https://fleet.example.org", "http://127.0.0.1:9", "https://[2001:db8::1]:8443/"])
def test_jobs_are_sent_to_an_address_of_the_operators(tmp_path: Path, url: str) -> None:
    given = {"SEGFLEET_HOME": str(tmp_path), "SEGFLEET_ATTEMPTS_URL": url}
    assert Settings.from_environment(given).attempts_url == url.rstrip("/")


@pytest.mark.parametrize(
    ("url", "words"),
    [("http://fleet.example.org", "unencrypted"), ("fleet", "is no address"), ("https://[::1", "is no address")],
)
def test_odd_addresses_for_jobs_are_told(tmp_path: Path, url: str, words: str) -> None:
    with pytest.raises(SettingsError, match=f"SEGFLEET_ATTEMPTS_URL.*{words}"):
        Settings.from_environment({"SEGFLEET_HOME": str(tmp_path), "SEGFLEET_ATTEMPTS_URL": url})


def test_a_shared_folder_holds_what_all_servers_must_see(tmp_path: Path) -> None:
    given = {"SEGFLEET_HOME": str(tmp_path / "home"), "SEGFLEET_SHARED": str(tmp_path / "shared")}
    home = Settings.from_environment(given).home
    with pytest.raises(SettingsError, match=r"SEGFLEET_SHARED=.*is no folder"):
        home.create()
    (tmp_path / "shared").mkdir()
    home.create()
    assert (home.storage, home.logs) == (tmp_path / "shared" / "storage", tmp_path / "shared" / "logs")
    assert home.token.parent == tmp_path / "home"


def test_default_home(tmp_path: Path) -> None:
    assert default_home({"SEGFLEET_HOME": str(tmp_path)}).root == tmp_path
    assert default_home({}).root == Path.home() / ".segfleet"
    assert default_home({"SEGFLEET_HOME": ""}).root == Path.home() / ".segfleet"
    assert default_home({"SEGFLEET_HOME": "some/where"}).root.is_absolute()


def test_settings_from_environment(tmp_path: Path) -> None:
    environment = {"SEGFLEET_HOME": str(tmp_path), "SEGFLEET_PORT": "9000", "SEGFLEET_LEASE_S": "1.5"}
    settings = Settings.from_environment(environment)
    assert (settings.port, settings.attempts_url, settings.lease_s) == (9000, "http://127.0.0.1:9000", 1.5)
    assert settings.database_url == f"sqlite:///{tmp_path / 'segfleet.db'}"


@pytest.mark.parametrize("text", ["soon", "inf", "nan", ""])
@pytest.mark.parametrize("name", ["SEGFLEET_POLL_S", "SEGFLEET_PORT"])
def test_malformed_number_names_the_variable(tmp_path: Path, name: str, text: str) -> None:
    with pytest.raises(SettingsError, match=f"{name}='{text}' is not a number"):
        Settings.from_environment({"SEGFLEET_HOME": str(tmp_path), name: text})


def test_job_environment_holds_no_secret(tmp_path: Path) -> None:
    settings = Settings.from_environment({"SEGFLEET_HOME": str(tmp_path), "SEGFLEET_TOKEN": "t0p-secret"})
    assert "t0p-secret" not in json.dumps(settings.job_env)
    assert [name for name in settings.job_env if "TOKEN" in name or "CODE" in name] == []


@pytest.mark.parametrize("text", ["0", "-1", "0.5"])
def test_a_lease_too_short_to_be_renewed_is_refused(text: str, tmp_path: Path) -> None:
    environment = {"SEGFLEET_HOME": str(tmp_path), "SEGFLEET_LEADER_LEASE_S": text}
    with pytest.raises(SettingsError, match=r"SEGFLEET_LEADER_LEASE_S=.* is too little; use at least 1"):
        Settings.from_environment(environment)


@pytest.mark.parametrize(
    ("name", "text", "complaint"),
    [
        ("SEGFLEET_LEASE_S", "-3", "is too little; use at least 1"),
        ("SEGFLEET_START_DEADLINE_S", "0", "is too little; use at least 1"),
        ("SEGFLEET_POLL_S", "0", "is too little; use at least 0.05"),
        ("SEGFLEET_PORT", "0", "is no port; use a whole number from 1 to 65535"),
        ("SEGFLEET_PORT", "99999", "is no port; use a whole number from 1 to 65535"),
        ("SEGFLEET_PORT", "87.5", "is no port; use a whole number from 1 to 65535"),
    ],
)
def test_a_number_that_makes_no_sense_is_refused(name: str, text: str, complaint: str, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=f"{name}='{text}' {complaint}"):
        Settings.from_environment({"SEGFLEET_HOME": str(tmp_path), name: text})
