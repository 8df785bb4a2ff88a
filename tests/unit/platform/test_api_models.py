"""Versions of models that were brought along."""

from __future__ import annotations

from typing import Any

import pytest

from segfleet.client import Client
from segfleet.errors import ModelRefusedError, ServiceError
from serving import API_TOKEN, URL, AppTransport

PATH = "/api/v1/models/seg/versions"
BODY = {
    "run_id": "b" * 32,
    "model_uri": "models:/m-" + "c" * 32,
    "content_digest": "d" * 64,
    "alias": "best",
    "metrics": {"miou": 0.5},
    "tags": {"segfleet.format": "reference"},
}


def test_the_client_makes_a_version_known_by_its_content(service: Any, transport: AppTransport) -> None:
    client = Client(URL, API_TOKEN, transport=transport)
    made = client.register_model("seg", **{key: value for key, value in BODY.items() if key != "alias"})
    assert made == {"name": "seg", "version": "1", "alias": None, "promotion": None}
    assert client.register_model("seg", **BODY)["alias"] == "best"  # type: ignore[arg-type]
    without, wanted = service.registry.registered
    assert without == wanted
    assert wanted.name == "seg"
    assert without.identity == wanted.identity == {"segfleet.content_digest": "d" * 64}
    assert (wanted.run_id, wanted.model_uri) == (BODY["run_id"], BODY["model_uri"])
    assert (wanted.metrics, wanted.tags) == ({"miou": 0.5}, {"segfleet.format": "reference"})


def test_a_version_needs_the_service_s_token(service: Any) -> None:
    _, _, attempt = service.running()
    for headers in ({}, {"Authorization": "Bearer wrong"}, attempt):
        assert service.http.post(PATH, json=BODY, headers=headers).status_code == 401
    assert service.registry.registered == []


@pytest.mark.parametrize(
    "change",
    [
        {"run_id": "../x"},
        {"model_uri": "m" * 301},
        {"content_digest": "d"},
        {"content_digest": None},
        {"alias": "Best!"},
        {"alias": "latest version"},
        {"metrics": {"a'b": 1.0}},
        {"tags": {"a": 1}},
        {"job_id": "job-aaaaaaaa"},
    ],
)
def test_a_malformed_version_is_refused(service: Any, change: dict[str, Any]) -> None:
    assert service.http.post(PATH, json={**BODY, **change}, headers=service.bearer).status_code == 422
    assert service.registry.registered == []


@pytest.mark.parametrize("name", ["Seg", "-seg", "s" * 64, "seg'", "seg%20x"])
def test_a_name_that_no_model_can_have_is_refused(service: Any, name: str) -> None:
    answer = service.http.post(f"/api/v1/models/{name}/versions", json=BODY, headers=service.bearer)
    assert (answer.status_code, service.registry.registered) == (422, [])
    assert "use 1 to 63 of" in answer.json()["message"]


@pytest.mark.parametrize(
    ("error", "status"), [(ServiceError("MLflow is away"), 503), (ModelRefusedError("not this run's"), 422)]
)
def test_a_foreign_run_or_a_registry_that_is_away_is_told(service: Any, error: Exception, status: int) -> None:
    def failing(_: Any) -> Any:
        raise error

    service.registry.register = failing
    answer = service.http.post(PATH, json=BODY, headers=service.bearer)
    assert (answer.status_code, answer.json()["message"]) == (status, str(error))
