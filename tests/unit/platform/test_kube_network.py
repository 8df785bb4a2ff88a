"""The launcher for Kubernetes over real connections: TLS, lost answers, and a job's whole way through the queue."""

from __future__ import annotations

import shutil
import ssl
import subprocess
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from kube_server import LOST, KubeRay, Kubernetes, refusal, serving_kube
from segfleet.cluster.kube_launcher import KubeLauncher
from segfleet.cluster.launcher import ClusterUnreachableError, RayState
from segfleet.cluster.needs import Needs
from segfleet.errors import SettingsError
from segfleet.queue.states import JobState
from world import World

ID = "job-aaaaaaaa-a1"
NEEDS = Needs(workers=1, cpus=1, gpus=0, project="default")


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    ray = KubeRay(tmp_path)
    with serving_kube(ray.api) as url:
        settings = replace(ray.api.settings, url=url)
        with closing(KubeLauncher(settings)) as door:
            yield World(tmp_path, ray=ray, door=door, kube=settings)


def api(world: World) -> Kubernetes:
    assert isinstance(world.ray, KubeRay)
    return world.ray.api


def test_a_job_s_whole_way_over_the_network(world: World) -> None:
    job = world.submit()
    world.step()
    assert list(api(world).of("rayjobs")) == list(api(world).of("secrets")) == [f"{job.id}-a1"]
    grant = world.claim(job)
    world.step()
    assert world.state(job) == JobState.RUNNING
    world.queue.complete(grant.attempt_id, grant.token, {"miou": 0.5})
    world.ray.end(grant.attempt_id, RayState.SUCCEEDED)
    world.pass_time(10)
    assert world.state(job) == JobState.SUCCEEDED
    assert world.ray.runs == [grant.attempt_id]


@pytest.mark.parametrize("fault", [LOST, refusal(500, "InternalError"), refusal(429, "TooManyRequests")])
@pytest.mark.parametrize("which", range(5))
def test_no_fault_of_a_turn_starts_a_job_twice_or_never(world: World, fault: object, which: int) -> None:
    job = world.submit()
    api(world).next = [None] * which + [fault]
    world.pass_time(15)
    assert world.ray.runs == [f"{job.id}-a1"]
    assert world.state(job) == JobState.STARTING
    world.claim(job)


def test_a_cancelled_job_leaves_neither_rayjob_nor_secret(world: World) -> None:
    job = world.submit()
    world.step()
    world.claim(job)
    world.queue.cancel(job.id, who="ann")
    world.pass_time(60)
    assert world.state(job) == JobState.CANCELLED
    assert api(world).of("rayjobs") == api(world).of("secrets") == {}


def test_a_namespace_that_is_made_anew_has_forgotten_every_job(world: World) -> None:
    job = world.submit(max_retries=1)
    world.step()
    world.claim(job)
    world.step()
    world.ray.restart_head()
    world.pass_time(90)
    assert world.queue.get(job.id).attempt == 2
    assert list(api(world).of("rayjobs")) == [f"{job.id}-a2"]


def test_only_the_authority_of_the_settings_is_believed(tmp_path: Path) -> None:
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("makes its certificates with openssl")
    for name in ("ours", "other"):
        words = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"]
        files = ["-keyout", str(tmp_path / f"{name}.key"), "-out", str(tmp_path / f"{name}.crt")]
        names = ["-subj", f"/CN={name}", "-addext", "subjectAltName=IP:127.0.0.1"]
        subprocess.run([openssl, *words, *names, *files], check=True, capture_output=True)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(tmp_path / "ours.crt", tmp_path / "ours.key")
    kube = Kubernetes(tmp_path)
    with serving_kube(kube, tls) as url:
        for name, is_believed in (("ours", True), ("other", False)):
            settings = replace(kube.settings, url=url, ca_file=tmp_path / f"{name}.crt")
            with closing(KubeLauncher(settings)) as launcher:
                if is_believed:
                    assert launcher.session() == "life-1"
                else:
                    with pytest.raises(ClusterUnreachableError, match="ConnectError"):
                        launcher.session()
    with pytest.raises(SettingsError, match="SEGFLEET_KUBE_CA_FILE"):
        KubeLauncher(replace(kube.settings, ca_file=tmp_path / "kube-token"))


def test_a_proxy_of_the_environment_is_not_asked(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    with closing(KubeLauncher(world.settings.kube or api(world).settings)) as launcher:
        launcher.submit(ID, "true", {}, {}, NEEDS)
    assert list(api(world).of("rayjobs")) == [ID]
