"""Jobs of kind evaluate at the service's door, and the figures their attempts hand in."""

from __future__ import annotations

from typing import Any

import pytest

from segfleet.errors import ServiceError
from segfleet.spec.reference import split_reference
from serving import make_shards

FIGURES = {"version": "1", "metrics": {"eval/boxes-val-0123456789ab/reference-ss-01234567/miou": 0.5}}


def submit(service: Any, verb: str = "jobs", **changes: Any) -> Any:
    shards = service.home.root / "shards"
    spec = {
        "kind": "evaluate",
        "name": "score",
        "model": "seg@best",
        "data": {"shards": str(shards) if shards.is_dir() else make_shards(shards)},
        **changes,
    }
    return service.http.post(f"/api/v1/{verb}", json={"spec": spec}, headers=service.bearer)


def running(service: Any, **changes: Any) -> tuple[str, dict[str, str]]:
    attempt_id = service.start(submit(service, **changes).json()["id"])
    return attempt_id, {"Authorization": f"Bearer {service.claim(attempt_id).json()['token']}"}


def hand_in(service: Any, attempt_id: str, bearer: dict[str, str], body: dict[str, Any] = FIGURES) -> Any:
    return service.http.post(f"/api/v1/attempts/{attempt_id}/evaluated", json=body, headers=bearer)


def test_its_workers_are_counted(service: Any) -> None:
    answer = submit(service, "check", resources={"workers": 3, "cpus_per_worker": 2})
    assert answer.status_code == 200
    assert answer.json()["needs"] == {"workers": 3, "cpus": 6, "gpus": 0}
    assert answer.json()["spec"]["worst"] == 8


@pytest.mark.parametrize("model", ["seg@best", "seg/1"])
def test_a_model_of_the_registry_is_taken(service: Any, model: str) -> None:
    assert submit(service, model=model).status_code == 201


@pytest.mark.parametrize("model", ["seg@nothing", "seg/7", "other@best"])
@pytest.mark.parametrize("verb", ["jobs", "check"])
def test_a_model_that_is_not_there_is_refused_with_a_sentence(service: Any, verb: str, model: str) -> None:
    answer = submit(service, verb, model=model)
    assert answer.status_code == 422
    assert answer.json()["problems"][0]["path"] == "model"
    assert "the registry has no" in answer.json()["message"]


def test_what_it_follows_may_still_make_model_and_data(service: Any) -> None:
    first = submit(service).json()["id"]
    later = {"model": "other@best", "data": {"shards": "/nothing/yet"}, "queue": {"after": [first]}}
    assert submit(service, **later).status_code == 201
    assert submit(service, data={"shards": "/nothing/yet"}).status_code == 422


def test_a_registry_that_does_not_answer_refuses_nothing(service: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(*_: str) -> dict[str, Any]:
        raise ServiceError("away")

    monkeypatch.setattr(service.registry, "version", away)
    assert submit(service, model="other@best").status_code == 201
    monkeypatch.setattr(service.registry, "is_up", lambda: False)
    monkeypatch.setattr(service.registry, "version", lambda *_: pytest.fail("asked"))
    assert submit(service, model="other@best").status_code == 201


def test_figures_go_to_the_evaluated_version_of_the_spec_s_model(service: Any) -> None:
    attempt_id, bearer = running(service)
    for _ in range(2):
        assert hand_in(service, attempt_id, bearer).status_code == 200
    assert service.registry.figures == {("seg", "1"): FIGURES["metrics"]}


def test_a_fenced_attempt_adds_no_figures(service: Any) -> None:
    attempt_id, bearer = running(service)
    body = {"failure": {"class": "infra", "message": "m"}}
    service.http.post(f"/api/v1/attempts/{attempt_id}/fail", json=body, headers=bearer)
    assert hand_in(service, attempt_id, bearer).status_code == 409
    assert service.registry.figures == {}


def test_only_evaluate_jobs_add_figures_and_only_to_the_version_they_name(service: Any) -> None:
    _, attempt_id, bearer = service.running()
    assert hand_in(service, attempt_id, bearer).status_code == 422
    attempt_id, bearer = running(service, model="seg/1")
    assert hand_in(service, attempt_id, bearer, {**FIGURES, "version": "2"}).status_code == 422
    assert service.registry.figures == {}


@pytest.mark.parametrize(
    "change", [{"version": "@best"}, {"metrics": {"miou": 0.5}}, {"metrics": {"eval/a\nb": 0.5}}, {"extra": 1}]
)
def test_malformed_figures_are_refused(service: Any, change: dict[str, Any]) -> None:
    attempt_id, bearer = running(service)
    assert hand_in(service, attempt_id, bearer, {**FIGURES, **change}).status_code == 422


def test_a_reference_names_a_version_or_an_alias() -> None:
    assert split_reference("seg@best") == ("seg", "@best")
    assert split_reference("seg/12") == ("seg", "12")
