"""Trials over HTTP: what a search's attempt writes and people read; the attempt's client carries it."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from searching import search_document
from segfleet.client import Client
from segfleet.errors import AttemptFencedError, QueueError, ServiceError
from segfleet_jobs.attempt import AttemptClient, Credentials
from serving import API_TOKEN, URL, AppTransport, Service, make_shards

PARAMS = {"model.patch_size": 8, "train.crop": 64}
POINTER = {"path": "/s/step-5", "step": 5, "sha256": "a" * 64, "bytes": 10}


@pytest.fixture
def search(service: Service) -> tuple[str, AttemptClient]:
    """A running search, and the client of its attempt."""
    base = {**search_document()["base"], "data": {"shards": make_shards(service.home.root / "shards")}}
    answer = service.http.post("/api/v1/jobs", json={"spec": search_document(base=base)}, headers=service.bearer)
    assert answer.status_code == 201, answer.text
    job_id = answer.json()["id"]
    attempt_id = service.start(job_id)
    client = AttemptClient(Credentials(URL, attempt_id, service.claim(attempt_id).json()["token"]))
    transport = AppTransport(service.http)
    client._http = httpx.Client(base_url=client._http.base_url, headers=client._http.headers, transport=transport)
    return job_id, client


def test_an_attempts_client_tells_all_of_a_trial(service: Service, search: tuple[str, AttemptClient]) -> None:
    job_id, client = search
    assert client.trials() == []
    assert client.add_trial(1, "trial", PARAMS, 40)["state"] == "waiting"
    trial = client.trial(1)
    assert trial.latest_checkpoint() is None
    assert trial.state("running", mlflow_run="c" * 32)["mlflow_run"] == "c" * 32
    assert trial.set_checkpoint(POINTER)["step"] == 5
    assert (trial.latest_checkpoint() or {}).items() >= POINTER.items()
    assert trial.report(1, 10, 0.5, 0.5, 1.5)["best_value"] == 0.5
    assert trial.report(2, 20, float("nan"), None, 3.0)["reports"][1]["value"] is None
    measured = trial.measured(parameters=7, images_per_s=2.5, peak_memory_mib=100.0)
    assert (measured["parameters"], measured["images_per_s"], measured["peak_memory_mib"]) == (7, 2.5, 100.0)
    ended = trial.state("stopped", why="behind", worker_seconds=4.0)
    assert client.trials() == [ended]
    shown = Client(URL, API_TOKEN, transport=AppTransport(service.http)).trials(job_id)
    assert shown == {"trials": [ended], "metric": "val/miou", "mode": "max"}


def test_a_refusal_is_no_fence_and_a_fence_is(service: Service, search: tuple[str, AttemptClient]) -> None:
    job_id, client = search
    client.add_trial(1, "trial", PARAMS, 40)
    with pytest.raises(ServiceError, match="is there already"):
        client.add_trial(1, "trial", {**PARAMS, "train.crop": 96}, 40)
    with pytest.raises(ServiceError, match="cannot become succeeded"):
        client.trial(1).state("succeeded")
    with pytest.raises(ServiceError, match="has no trial 2"):
        client.trial(2).latest_checkpoint()
    client.fail("infra", "lost")
    with pytest.raises(AttemptFencedError):
        client.trial(1).state("running")
    with pytest.raises(AttemptFencedError):
        client.trials()
    assert service.queue.trials.of_job(job_id)[1][0]["state"] == "waiting"


MALFORMED: list[tuple[str, dict[str, Any]]] = [
    ("trials", {"number": 0, "params": {}, "num_steps": 1}),
    ("trials", {"number": 1, "params": {"x": "\0"}, "num_steps": 1}),
    ("trials", {"number": 1, "params": {str(n): n for n in range(101)}, "num_steps": 1}),
    ("trials", {"number": 1, "kind": "best", "params": {}, "num_steps": 1}),
    ("trials/0/state", {"state": "running"}),
    ("trials/x/state", {"state": "running"}),
    ("trials/1/state", {"state": "paused"}),
    ("trials/1/state", {"state": "running", "mlflow_run": "x"}),
    ("trials/1/state", {"state": "running", "worker_seconds": -1.0}),
    ("trials/1/report", {"validation": 0, "step": 1, "value": 0.5, "seconds": 1.0}),
    ("trials/1/report", {"validation": 1, "step": 1, "value": "0.5", "seconds": 1.0}),
    ("trials/1/checkpoint", {"checkpoint": {**POINTER, "sha256": "x"}}),
    ("trials/1/measured", {"parameters": -1}),
    ("trials/1/measured", {"parameters": 2**63}),
]


def test_what_is_malformed_is_refused_and_changes_nothing(search: tuple[str, AttemptClient]) -> None:
    _, client = search
    client.add_trial(1, "trial", PARAMS, 40)
    client.trial(1).state("running")
    before = client.trials()
    for verb, body in MALFORMED:
        answer = client._http.post(verb, json=body)
        assert answer.status_code == 422, (verb, body, answer.text)
    assert client.trials() == before


def test_other_jobs_have_no_trials(service: Service) -> None:
    job_id, attempt_id, bearer = service.running()
    client = Client(URL, API_TOKEN, transport=AppTransport(service.http))
    with pytest.raises(QueueError, match="only searches have trials"):
        client.trials(job_id)
    body = {"number": 1, "params": {}, "num_steps": 1}
    answer = service.http.post(f"/api/v1/attempts/{attempt_id}/trials", json=body, headers=bearer)
    assert (answer.status_code, answer.json()["code"]) == (422, "queue")


def test_nobody_writes_another_searchs_trials(service: Service, search: tuple[str, AttemptClient]) -> None:
    _, client = search
    _, _, other = service.running()
    path = f"/api/v1/attempts/{client.attempt_id}/trials"
    body = {"number": 1, "params": {}, "num_steps": 1}
    for bearer in (other, service.bearer, {}):
        assert service.http.post(path, json=body, headers=bearer).status_code == 401
        assert service.http.get(path, headers=bearer).status_code == 401
    assert client.trials() == []


def test_a_search_that_cannot_run_is_refused_at_the_door(service: Service) -> None:
    def problems(**changes: Any) -> list[str]:
        body = {"spec": search_document(**changes)}
        for route in ("check", "jobs"):
            answer = service.http.post(f"/api/v1/{route}", json=body, headers=service.bearer)
            assert answer.status_code == 422, answer.text
        return [problem["path"] for problem in answer.json()["problems"]]

    assert problems() == ["base.data.shards"]
    assert problems(space={"optim.lrr": [1]}) == ["space.optim.lrr"]
    assert problems(space={"model.pretrained": ["hf_" + "a1B2" * 10, False]}) == ["space.model.pretrained[0]"]
