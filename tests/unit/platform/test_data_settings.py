from __future__ import annotations

from pathlib import Path

import pytest

from segfleet.cluster.components import choose_ports, components
from segfleet.data_settings import S3Settings
from segfleet.errors import SettingsError
from segfleet.settings import Home, Settings, child_environment, data_settings

SECRET = "wJalrXUtnFEMI/K7MDENG"


def test_defaults_lie_in_the_home_folder() -> None:
    settings = data_settings({"SEGFLEET_HOME": "/somewhere"})
    assert settings.cache_folder == Path("/somewhere/cache")
    assert settings.cache_limit_bytes == 50 * 1024**3
    assert settings.data_hosts == frozenset()
    assert settings.s3 == S3Settings()
    assert settings.checkpoints is None


def test_checkpoints_lie_in_an_object_store_if_so_wished() -> None:
    assert data_settings({"SEGFLEET_CHECKPOINTS": " s3://bucket/jobs/ "}).checkpoints == "s3://bucket/jobs"


@pytest.mark.parametrize("text", ["/a/folder", "https://example.org/x", "s3://user:key@bucket/x", "pipe:rm"])
def test_checkpoints_lie_nowhere_else(text: str) -> None:
    with pytest.raises(SettingsError, match="SEGFLEET_CHECKPOINTS") as caught:
        data_settings({"SEGFLEET_CHECKPOINTS": text})
    assert "key@" not in str(caught.value)


def test_the_environment_is_read() -> None:
    settings = data_settings(
        {
            "SEGFLEET_CACHE_DIR": "/scratch/cache",
            "SEGFLEET_CACHE_LIMIT": "1.5TB",
            "SEGFLEET_DATA_HOSTS": " Data.Example:8080, [fd00::1] ,",
            "AWS_ENDPOINT_URL": "http://store:9000/",
            "AWS_REGION": "eu-west-1",
            "AWS_ACCESS_KEY_ID": "AKIA",
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_SESSION_TOKEN": "token",
        }
    )
    assert settings.cache_folder == Path("/scratch/cache")
    assert settings.cache_limit_bytes == 1_500_000_000_000
    assert settings.data_hosts == {"data.example:8080", "[fd00::1]"}
    assert settings.s3 == S3Settings("http", "store:9000", "eu-west-1", "AKIA", SECRET, "token")
    assert SECRET not in repr(settings)


def test_the_address_for_s3_alone_comes_first_and_half_a_key_is_none() -> None:
    env = {"AWS_ENDPOINT_URL": "https://all", "AWS_ENDPOINT_URL_S3": "https://s3only", "AWS_SECRET_ACCESS_KEY": SECRET}
    s3 = data_settings(env).s3
    assert (s3.scheme, s3.endpoint, s3.region) == ("https", "s3only", "us-east-1")
    assert s3.secrets == ()


def test_empty_variables_of_amazons_are_unset_as_for_its_own_tools() -> None:
    names = ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_REGION", "AWS_DEFAULT_REGION", "AWS_SESSION_TOKEN")
    keys = {"AWS_ACCESS_KEY_ID": "AKIA", "AWS_SECRET_ACCESS_KEY": SECRET}
    assert data_settings({**dict.fromkeys(names, ""), **keys}).s3 == S3Settings(access_key="AKIA", secret_key=SECRET)


@pytest.mark.parametrize(
    ("text", "size"), [("1", 1), ("10B", 10), ("2kB", None), ("2KB", 2000), ("2KiB", 2048), ("0.5GiB", 2**29)]
)
def test_sizes(text: str, size: int | None) -> None:
    env = {"SEGFLEET_CACHE_LIMIT": text}
    if size is None:
        with pytest.raises(SettingsError, match=f"SEGFLEET_CACHE_LIMIT='{text}' is not a size"):
            data_settings(env)
    else:
        assert data_settings(env).cache_limit_bytes == size


@pytest.mark.parametrize("text", ["", "0", "-1", "GiB", "1e9", "nan", "50 gigabytes", "0.0KB"])
def test_no_sizes(text: str) -> None:
    with pytest.raises(SettingsError, match="write for instance 50GiB"):
        data_settings({"SEGFLEET_CACHE_LIMIT": text})


@pytest.mark.parametrize(
    "endpoint",
    [f"https://key:{SECRET}@store", f"https://store?key={SECRET}", "ftp://store", "store:9000", "https://store/path"],
)
def test_no_endpoints(endpoint: str) -> None:
    with pytest.raises(SettingsError, match="AWS_ENDPOINT_URL is no address") as caught:
        data_settings({"AWS_ENDPOINT_URL": endpoint})
    assert SECRET not in str(caught.value)


def test_keys_reach_the_embedded_ray_by_inheritance_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    home = Home(tmp_path)
    ray = components(home, choose_ports(8700, {}))[0]
    environment = child_environment(ray.environment)
    assert environment["AWS_SECRET_ACCESS_KEY"] == SECRET
    assert data_settings(environment).cache_folder == tmp_path / "cache"
    settings = Settings.from_environment({**environment, "SEGFLEET_HOME": str(tmp_path)})
    assert not any(SECRET in text for text in (*ray.command, *settings.job_env.values(), str(dict(ray.environment))))
