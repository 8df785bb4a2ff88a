from __future__ import annotations

from typing import Any

import pytest

from segfleet.errors import ModelRefusedError, ServiceError
from serving import make_shards

ATTEMPTS = "/api/v1/attempts"
POINTER = {"path": "/s/step-5", "step": 5, "sha256": "a" * 64, "bytes": 10, "best_step": None}
REGISTER = {"run_id": "b" * 32, "model_uri": "models:/m-1", "metrics": {"miou": 0.5, "x": None}, "tags": {"k": "v"}}


def post(service: Any, attempt_id: str, verb: str, body: dict[str, Any], bearer: dict[str, str]) -> Any:
    return service.http.post(f"{ATTEMPTS}/{attempt_id}/{verb}", json=body, headers=bearer)


def test_a_code_is_traded_once(service: Any) -> None:
    attempt_id = service.start(service.submit()["id"])
    first, again = service.claim(attempt_id), service.claim(attempt_id)
    assert first.status_code == 200
    assert again.json() == first.json()
    assert first.json().keys() == {
        "job_id",
        "attempt_id",
        "token",
        "fence",
        "spec",
        "checkpoint",
        "storage",
        "workers",
        "mlflow",
        "earlier",
    }
    other = service.http.post(
        f"{ATTEMPTS}/{attempt_id}/claim", json={"code": "one-time-code", "instance": "fedcba9876543210"}
    )
    assert (other.status_code, other.json()["code"]) == (409, "attempt_fenced")


@pytest.mark.parametrize("attempt_id", ["job-aaaaaaaa-a1", "x", "job-aaaaaaaa-a1'", "%00"])
def test_a_claim_of_nothing_is_refused(service: Any, attempt_id: str) -> None:
    assert service.claim(attempt_id).status_code == 409


def test_a_wrong_code_is_refused(service: Any) -> None:
    attempt_id = service.start(service.submit()["id"])
    assert service.claim(attempt_id, "wrong").status_code == 409


def test_a_beat_carries_progress_and_hears_of_cancel(service: Any) -> None:
    job_id, attempt_id, bearer = service.running()
    progress = {"step": 3, "num_steps": 9, "loss": 0.5, "time": {"data": 0.1}}
    assert post(service, attempt_id, "heartbeat", {"progress": progress}, bearer).json() == {"command": "continue"}
    assert service.queue.get(job_id).progress == progress
    service.queue.cancel(job_id, "me")
    assert post(service, attempt_id, "heartbeat", {"progress": None}, bearer).json() == {"command": "cancel"}


def test_the_checkpoint_pointer(service: Any) -> None:
    _, attempt_id, bearer = service.running()
    path = f"{ATTEMPTS}/{attempt_id}/checkpoint"
    assert service.http.get(path, headers=bearer).json() == {"checkpoint": None}
    assert post(service, attempt_id, "checkpoint", {"checkpoint": POINTER}, bearer).status_code == 200
    assert service.http.get(path, headers=bearer).json()["checkpoint"].items() >= POINTER.items()
    lower = post(service, attempt_id, "checkpoint", {"checkpoint": {**POINTER, "step": 4}}, bearer)
    assert (lower.status_code, lower.json()["code"]) == (422, "queue")


@pytest.mark.parametrize(
    "wrong", [{}, {**POINTER, "step": -1}, {**POINTER, "step": "5"}, {**POINTER, "sha256": "x"}, {**POINTER, "path": 1}]
)
def test_a_malformed_pointer_is_refused(service: Any, wrong: dict[str, Any]) -> None:
    _, attempt_id, bearer = service.running()
    assert post(service, attempt_id, "checkpoint", {"checkpoint": wrong}, bearer).status_code == 422


def test_a_group_of_workers_shows_its_number(service: Any) -> None:
    _, attempt_id, bearer = service.running()
    first, second = (post(service, attempt_id, "group", {"scope": "job"}, bearer).json() for _ in range(2))
    assert (first["number"], second["number"]) == (1, 2)
    bearers = [{"Authorization": f"Bearer {group['token']}"} for group in (first, second)]
    cut_off, alive = (post(service, attempt_id, "checkpoint", {"checkpoint": POINTER}, one) for one in bearers)
    assert (cut_off.status_code, cut_off.json()["code"], alive.status_code) == (409, "attempt_fenced", 200)
    for scope in ("", "a.1", "A", "x" * 17):
        assert post(service, attempt_id, "group", {"scope": scope}, bearer).status_code == 422


def test_an_attempt_is_asked_to_leave_machines_that_go(service: Any) -> None:
    _, attempt_id, bearer = service.running()
    node = {"node": "ab12", "address": "10.0.0.7", "leaves_at": 1_700_000_060.0}
    assert post(service, attempt_id, "leave", {"nodes": []}, bearer).status_code == 422
    assert post(service, attempt_id, "leave", {"nodes": [{**node, "node": "a b"}]}, bearer).status_code == 422
    assert post(service, attempt_id, "leave", {"nodes": [node]}, bearer).json() == {"ok": True}
    assert post(service, attempt_id, "heartbeat", {}, bearer).json() == {"command": "preempt"}


def test_completion_is_heard_once_and_repeated(service: Any) -> None:
    job_id, attempt_id, bearer = service.running()
    for _ in range(2):
        assert post(service, attempt_id, "complete", {"result": {"miou": 0.5}}, bearer).json() == {"ok": True}
    assert service.queue.get(job_id).result == {"miou": 0.5}
    late = post(service, attempt_id, "heartbeat", {}, bearer)
    assert (late.status_code, late.json()["code"]) == (409, "attempt_fenced")


def test_failure_carries_its_class(service: Any) -> None:
    job_id, attempt_id, bearer = service.running()
    for uncounted in ("restart", "time_limit"):
        body = {"failure": {"class": uncounted, "message": "m"}}
        assert post(service, attempt_id, "fail", body, bearer).status_code == 422
    odd = post(service, attempt_id, "fail", {"failure": {"class": "bad luck", "message": "m"}}, bearer)
    assert odd.status_code == 422
    assert post(service, attempt_id, "fail", {"failure": {"class": "data", "message": "m"}}, bearer).status_code == 200
    assert service.queue.get(job_id).state == "failed"


def running_with_register(service: Any) -> tuple[str, str, dict[str, str]]:
    spec = {
        "kind": "train",
        "name": "tiny",
        "data": {"shards": make_shards(service.home.root / "shards")},
        "register": {"model": "seg", "alias": "best"},
    }
    answer = service.http.post("/api/v1/jobs", json={"spec": spec}, headers=service.bearer)
    job_id = answer.json()["id"]
    attempt_id = service.start(job_id)
    token = service.claim(attempt_id).json()["token"]
    return job_id, attempt_id, {"Authorization": f"Bearer {token}"}


def test_registration_takes_name_and_alias_from_the_spec(service: Any) -> None:
    job_id, attempt_id, bearer = running_with_register(service)
    answer = post(service, attempt_id, "register", REGISTER, bearer)
    promotion = answer.json().pop("promotion")
    assert answer.json() == {"name": "seg", "version": "1", "alias": "best", "promotion": promotion}
    (wanted,) = service.registry.registered
    assert (wanted.identity["segfleet.job"], wanted.name) == (job_id, "seg")
    assert wanted.metrics == {"miou": 0.5, "x": None}


def test_a_person_s_retry_makes_a_new_generation_and_a_lost_attempt_does_not(service: Any) -> None:
    job_id, attempt_id, bearer = running_with_register(service)
    post(service, attempt_id, "register", REGISTER, bearer)
    for kind in ("infra", "user"):
        post(service, attempt_id, "fail", {"failure": {"class": kind, "message": "m"}}, bearer)
        if kind == "user":
            service.queue.retry(job_id, "me", from_start=True)
        attempt_id = service.start(job_id)
        bearer = {"Authorization": f"Bearer {service.claim(attempt_id).json()['token']}"}
        assert post(service, attempt_id, "register", REGISTER, bearer).status_code == 200
    first, second, retried = (int(wanted.identity["segfleet.generation"]) for wanted in service.registry.registered)
    assert first == second < retried


def test_a_fenced_attempt_registers_nothing(service: Any) -> None:
    _, attempt_id, bearer = running_with_register(service)
    post(service, attempt_id, "fail", {"failure": {"class": "infra", "message": "m"}}, bearer)
    assert post(service, attempt_id, "register", REGISTER, bearer).status_code == 409
    assert service.registry.registered == []


def test_a_spec_without_register_registers_nothing(service: Any) -> None:
    _, attempt_id, bearer = service.running()
    assert post(service, attempt_id, "register", REGISTER, bearer).status_code == 422
    assert service.registry.registered == []


@pytest.mark.parametrize(
    ("error", "status"), [(ServiceError("MLflow is away"), 503), (ModelRefusedError("not this run's"), 422)]
)
def test_a_registry_that_fails_never_looks_like_a_fence(service: Any, error: Exception, status: int) -> None:
    def failing(_: Any) -> Any:
        raise error

    _, attempt_id, bearer = running_with_register(service)
    service.registry.register = failing
    assert post(service, attempt_id, "register", REGISTER, bearer).status_code == status


@pytest.mark.parametrize(
    "change",
    [{"run_id": "../x"}, {"metrics": {"a'b": 1.0}}, {"metrics": {"a": "1"}}, {"tags": {"a": 1}}, {"alias": "champion"}],
)
def test_a_malformed_registration_is_refused(service: Any, change: dict[str, Any]) -> None:
    _, attempt_id, bearer = running_with_register(service)
    assert post(service, attempt_id, "register", {**REGISTER, **change}, bearer).status_code == 422
