from __future__ import annotations

import copy
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from deployment import DOCKER, ROOT, compose, compose_faults
from segfleet.settings import Settings

HOST = {"SEGFLEET_HOST": "fleet.example.org"}
COMPOSE = compose(HOST)
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
RUNNING = {name: service for name, service in SERVICES.items() if service["restart"] == "unless-stopped"}
OURS = {name: service for name, service in SERVICES.items() if service["image"].startswith("segfleet:")}
# Read by others than us; ours are found in the source.
FOREIGN = {
    "PGPASSFILE",
    "RAY_AUTH_MODE",
    "RAY_AUTH_TOKEN_PATH",
    "RAY_JOB_STOP_WAIT_TIME_S",
    "SSL_CERT_FILE",
    "AWS_SHARED_CREDENTIALS_FILE",
    "MLFLOW_S3_ENDPOINT_URL",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION",
    "POSTGRES_PASSWORD_FILE",
}


def known_variables() -> set[str]:
    """Every variable that the code reads."""
    code = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "platform" / "segfleet").rglob("*.py"))
    return set(re.findall(r"\bSEGFLEET_[A-Z0-9_]+", code)) | {f"SEGFLEET_{name}" for name in ("TLS_CERT", "TLS_KEY")}


def test_compose_accepts_it() -> None:
    assert compose_faults(COMPOSE) == []


@pytest.mark.parametrize(
    "change",
    [{"deploy": {"resources": {"limit": {}}}}, {"healthcheck": {"tests": []}}, {"port": ["1:1"]}, {"restart": True}],
)
def test_the_schema_finds_misspelt_fields(change: dict[str, Any]) -> None:
    document = copy.deepcopy(COMPOSE)
    document["services"]["service"] |= change
    assert compose_faults(document)


def test_it_needs_nothing_but_the_host_name() -> None:
    with pytest.raises(AssertionError, match="SEGFLEET_HOST"):
        compose({})
    assert f"https://{HOST['SEGFLEET_HOST']}" == SERVICES["service"]["environment"]["SEGFLEET_ATTEMPTS_URL"]


def test_everything_but_the_proxy_is_published_on_loopback_at_most() -> None:
    published = {name: port for name, service in SERVICES.items() for port in service.get("ports", ())}
    assert {name for name, port in published.items() if not port.startswith("127.0.0.1:")} == {"proxy"}
    assert COMPOSE["networks"]["inside"]["internal"] is True
    assert all("network_mode" not in service for service in SERVICES.values())


@pytest.mark.parametrize("name", SERVICES)
def test_every_service_is_hardened_and_bounded(name: str) -> None:
    service = SERVICES[name]
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert not service.get("privileged")
    assert set(service["deploy"]["resources"]["limits"]) == {"cpus", "memory"}
    assert re.search(r":(?!latest)v?\d+\.\d+[\w.-]*$", service["image"]), "its image is not pinned"
    assert service["logging"]["options"]["max-size"]


@pytest.mark.parametrize("name", RUNNING)
def test_everything_that_runs_has_a_health_check(name: str) -> None:
    assert RUNNING[name]["healthcheck"]["test"][0] == "CMD"


def test_what_is_waited_for_can_be_waited_for() -> None:
    for service in SERVICES.values():
        for name, how in service.get("depends_on", {}).items():
            assert how["condition"] == "service_completed_successfully" or name in RUNNING


def test_names_of_volumes_networks_and_secrets_are_defined() -> None:
    for service in SERVICES.values():
        mounts = [volume.partition(":")[0] for volume in service.get("volumes", ())]
        assert {mount for mount in mounts if not mount.startswith(".")} <= set(COMPOSE["volumes"])
        assert all((DOCKER / mount).exists() for mount in mounts if mount.startswith("."))
        assert set(service["networks"]) <= set(COMPOSE["networks"])
        secrets = {one if isinstance(one, str) else one["source"] for one in service.get("secrets", ())}
        assert secrets <= set(COMPOSE["secrets"])


def test_secrets_are_files_that_the_script_makes_and_stand_in_no_variable() -> None:
    script = (DOCKER / "make-secrets.sh").read_text(encoding="utf-8")
    files = {Path(secret["file"]).name for secret in COMPOSE["secrets"].values()}
    # Made when there is a service that can make it.
    assert [name for name in files - {"prometheus-token"} if name not in script] == []
    assert (DOCKER / ".gitignore").read_text(encoding="utf-8").split() == ["secrets/"]
    for service in SERVICES.values():
        for variable, value in service.get("environment", {}).items():
            assert not re.search("PASSWORD|TOKEN|SECRET|KEY", variable) or str(value).startswith("/run/secrets/")
            assert "@" not in str(value) or not re.search(r"//[^/@]*:[^/@]+@", str(value)), "a password in a URL"
    subprocess.run(["sh", "-n", DOCKER / "make-secrets.sh"], check=True)


def test_variables_are_some_that_somebody_reads() -> None:
    named = {variable for service in SERVICES.values() for variable in service.get("environment", {})}
    assert named - FOREIGN - known_variables() == set()


def test_the_service_accepts_its_settings() -> None:
    environment = {name: str(value) for name, value in SERVICES["service"]["environment"].items()}
    settings = Settings.from_environment({"SEGFLEET_HOME": "/var/lib/segfleet", **environment})
    assert settings.door is not None
    assert settings.door.proxy == SERVICES["proxy"]["networks"]["inside"]["ipv4_address"]
    assert settings.ray_address == "http://ray-head:8265"
    assert settings.database_url.startswith("postgresql+psycopg://segfleet@database")


def test_every_part_of_ray_asks_for_the_token() -> None:
    rays = {name: service for name, service in SERVICES.items() if service.get("command", [""])[0] == "ray"}
    assert set(rays) == {"ray-head", "ray-worker", "ray-worker-gpu"}
    for service in rays.values():
        assert service["environment"]["RAY_AUTH_MODE"] == "token"
        assert "ray-token" in service["secrets"]
    target = {"source": "ray-token", "target": "/var/lib/segfleet/ray-token"}
    assert target in SERVICES["service"]["secrets"]


def test_all_of_ours_are_one_image_and_see_the_same_folders() -> None:
    assert {re.sub("-cuda$", "", service["image"]) for service in OURS.values()} == {"segfleet:0.1.0"}
    for name in ("service", "ray-head", "ray-worker", "ray-worker-gpu"):
        assert "shared:/mnt/segfleet" in SERVICES[name]["volumes"]


def test_the_proxy_passes_on_to_the_door_and_hides_what_clients_say_of_themselves() -> None:
    text = (DOCKER / "proxy.conf").read_text(encoding="utf-8")
    port = SERVICES["service"]["environment"]["SEGFLEET_LISTEN"].rpartition(":")[2]
    assert f"proxy_pass http://$service:{port};" in text
    assert "X-Forwarded-For $remote_addr;" in text
    assert "proxy_buffering off;" in text
    assert text.count("{") == text.count("}")


def test_yaml_has_no_key_twice() -> None:
    class Loader(yaml.SafeLoader):
        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            keys = [key.value for key, _ in node.value if key.value != "<<"]
            assert len(keys) == len(set(keys)), keys
            return super().construct_mapping(node, deep)

    for path in [DOCKER / "compose.yaml", *sorted((DOCKER / "kubernetes").glob("*.yaml"))]:
        list(yaml.load_all(path.read_text(encoding="utf-8"), Loader))
