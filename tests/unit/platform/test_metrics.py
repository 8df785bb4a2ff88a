"""What Prometheus is told, and that users cannot make it grow without bound."""

from __future__ import annotations

from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from segfleet.errors import QueueUnavailableError
from segfleet.queue import lifecycle
from segfleet.queue.board import Board
from segfleet.queue.scheduling.values import Node
from segfleet.queue.states import FailureClass
from segfleet.server import metrics
from segfleet.telemetry import REGISTRY
from serving import Service, serving
from world import World

Found = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def scrape(service: Service, headers: dict[str, str] | None = None) -> Found:
    answer = service.http.get("/metrics", headers=headers or service.bearer)
    assert answer.status_code == 200, answer.text
    assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
    samples = [sample for family in text_string_to_metric_families(answer.text) for sample in family.samples]
    return {(sample.name, tuple(sorted(sample.labels.items()))): sample.value for sample in samples}


def of(found: Found, name: str, **labels: str) -> float | None:
    return found.get((f"segfleet_{name}", tuple(sorted(labels.items()))))


def test_jobs_waits_runs_and_failures_are_counted(service: Service) -> None:
    service.submit(queue={"project": "maps"})
    for ending in ("complete", "fail"):
        _, attempt_id, bearer = service.running()
        bodies = {"complete": {"result": {}}, "fail": {"failure": {"class": "user", "message": "no"}}}
        url = f"/api/v1/attempts/{attempt_id}/{ending}"
        assert service.http.post(url, json=bodies[ending], headers=bearer).status_code == 200
    found = scrape(service)
    assert of(found, "jobs", state="queued", project="maps") == 1
    assert of(found, "jobs", state="succeeded", project="default") == 1
    assert of(found, "attempts_ended_total", state="failed", failure="user") == 1
    assert of(found, "attempts_ended_total", state="succeeded", failure="") == 1
    assert of(found, "queue_wait_seconds_count") == 2
    assert of(found, "queue_wait_seconds_bucket", le="604800.0") == 2
    assert of(found, "job_run_seconds_count") == 1
    assert (of(found, "job_run_seconds_sum") or 0) > 0
    assert of(found, "preemptions_total") == 0
    assert of(found, "http_requests_total", method="POST", route="/jobs", status="201") is not None
    assert of(found, "http_request_seconds_count", route="/jobs") is not None
    assert any(name == "segfleet_build_info" for name, _ in found)


def test_use_heartbeats_quota_and_the_cluster_are_told(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    assert of(scrape(service), "cluster_up") == 0
    service.queue.board = Board((Node(4, 1), Node(4, 0)))
    service.running(queue={"project": "maps"})
    service.queue.set_policy("project", "maps", {"workers": 3, "max_running": 2})
    found = scrape(service)
    assert of(found, "cluster_resources", resource="cpus") == 8
    assert of(found, "cluster_resources", resource="gpus") == 1
    assert of(found, "cluster_used", resource="workers") == 1
    assert of(found, "project_used", project="maps", resource="workers") == 1
    assert of(found, "project_quota", project="maps", rule="workers") == 3
    assert of(found, "project_quota", project="maps", rule="max_running") == 2
    assert of(found, "project_quota", project="maps", rule="gpus") is None
    assert (of(found, "oldest_heartbeat_seconds") or 0) > 0
    monkeypatch.setattr(metrics, "MAX_PROJECTS", 0)
    assert of(scrape(service), "project_used", project="_rest", resource="workers") == 1


def test_totals_outlive_the_process(tmp_path: Path) -> None:
    with serving(tmp_path) as first:
        _, attempt_id, _ = first.running()
        with first.queue.store.write() as tx:
            attempt = tx.attempt(attempt_id)
            assert attempt is not None
            job = tx.job(attempt.job_id)
            lifecycle.end_failed(tx, job, attempt, FailureClass.NODE, "gone", now=1_700_000_100.0, lost=True)
    with serving(tmp_path) as second:
        assert of(scrape(second), "attempts_ended_total", state="lost", failure="node") == 1


def test_made_up_projects_paths_and_methods_share_one_label(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "MAX_PROJECTS", 2)
    for project in ("a", "a", "b", "b", "c", "d"):
        service.submit(queue={"project": project})
    for path in ("/api/v1/x1", "/x2"):
        service.http.get(path, headers=service.bearer)
    service.http.request("BREW", "/api/v1/jobs", headers=service.bearer)
    found = scrape(service)
    assert of(found, "jobs", state="queued", project="_rest") == 2
    projects = {dict(labels).get("project") for name, labels in found if name == "segfleet_jobs"}
    assert projects == {"a", "b", "_rest"}
    routes = {dict(labels).get("route") for name, labels in found if name == "segfleet_http_requests_total"}
    assert "unmatched" in routes
    assert not any("x1" in str(route) or "x2" in str(route) for route in routes)
    methods = {dict(labels).get("method") for name, labels in found if name == "segfleet_http_requests_total"}
    assert "other" in methods
    assert "BREW" not in methods


def test_viewers_may_read_and_strangers_may_not(service: Service) -> None:
    assert service.http.get("/metrics").status_code == 401
    body = {"user": "prometheus", "role": "viewer"}
    token = service.http.post("/api/v1/tokens", json=body, headers=service.bearer).json()["token"]
    assert of(scrape(service, {"Authorization": f"Bearer {token}"}), "is_leader") == 0


def test_the_dispatchers_turns_and_refusals_of_the_database_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def value(name: str, **labels: str) -> float:
        return REGISTRY.get_sample_value(f"segfleet_{name}", labels) or 0.0

    world = World(tmp_path)
    passes = value("scheduling_pass_seconds_count")
    world.step()
    assert value("scheduling_pass_seconds_count") == passes + 1
    refused = value("database_errors_total")
    world.queue.store.close()
    (tmp_path / "segfleet.db").write_bytes(b"no database")
    with pytest.raises(QueueUnavailableError):
        world.queue.counts()
    assert value("database_errors_total") == refused + 1
    world.queue.store.close()
