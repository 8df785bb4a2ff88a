"""The pages of models and of the operator: what they show, to whom, and what they let people do."""

from __future__ import annotations

import re
import threading
from typing import Any

import pytest

from segfleet.access.roles import Role
from serving import FROM_PAGE, Service, make_shards, page_key, sign_in

HTML = {"Accept": "text/html"}
EVIL = "<script>alert(1)</script>\u202e"


def look(service: Service, path: str, status: int = 200) -> str:
    answer = service.http.get(path, headers=HTML)
    assert answer.status_code == status, answer.text
    return str(answer.text)


def promote(service: Service, **fields: str) -> Any:
    data = {"key": page_key(service), **fields}
    return service.http.post("/models/seg/promotions", data=data, headers=FROM_PAGE | HTML, follow_redirects=False)


def token_of(service: Service, role: Role) -> str:
    body = {"user": f"{role}-1", "role": role}
    return str(service.http.post("/api/v1/tokens", json=body, headers=service.bearer).json()["token"])


def test_models_are_listed_and_shown_with_lineage_and_figures(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    sign_in(service)
    assert 'href="/models/seg"' in look(service, "/models")
    known = service.registry.version

    def version(name: str, ref: str) -> dict[str, Any]:
        tags = {"segfleet.dataset": f"camvid {EVIL}", "segfleet.content_id": "c" * 64}
        return {**known(name, ref), "metrics": {"miou": 0.5687}, "tags": tags, "job": "job-aaaaaaaa"}

    monkeypatch.setattr(service.registry, "version", version)
    text = look(service, "/models/seg")
    assert "0.5687" in text
    assert "├─ dataset camvid" in text
    assert 'href="/jobs/job-aaaaaaaa"' in text
    assert "@best" in text
    assert "<script>alert" not in text
    assert "\u202e" not in text
    monkeypatch.setattr(service.registry, "models", list)
    assert "No model yet" in look(service, "/models")
    look(service, "/models/nothing", 404)


def test_two_versions_stand_side_by_side(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    sign_in(service)
    figures = {"1": 0.5, "2": 0.53}
    versions = [{**service.registry.version("seg", number), "metrics": {"miou": figures[number]}} for number in "21"]
    model = {**service.registry.models()[0], "versions": versions}
    monkeypatch.setattr(service.registry, "model", lambda name: model)
    text = look(service, "/models/seg?a=1&b=2")
    assert "Version 1 beside version 2" in text
    assert "+0.03" in text
    assert text.count('class="sheet"') == 0
    assert text.count("No job of this service made it.") == 2
    look(service, "/models/seg/sheets?a=1&b=x", 422)
    look(service, "/models/seg?a=1&b=3", 404)
    look(service, "/models/seg?a=1&b=x", 422)


def test_the_pictures_of_two_versions_stand_side_by_side(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    sign_in(service)
    versions = [{**service.registry.version("seg", number), "job": f"job-aaaaaaa{number}"} for number in "12"]
    versions.append({**versions[0], "version": "3", "job": None})
    model = {**service.registry.models()[0], "versions": versions}
    monkeypatch.setattr(service.registry, "model", lambda name: model)
    for number in "12":
        pictures = ["step-00000010.png", f"step-000000{number}0.png"]
        found = {"run_id": "r", "experiment_id": "1", "series": {}, "classes": {}, "pictures": pictures}
        service.registry.curves_of[f"job-aaaaaaa{number}"] = found
    assert look(service, "/models/seg?a=2&b=1").count("Asking MLflow") == 2
    for _ in range(200):  # threads ask MLflow meanwhile
        part = look(service, "/models/seg/sheets?a=2&b=1")
        if "data-over" in part:
            break
        threading.Event().wait(0.01)
    assert part.count('class="sheet"') == 2
    text = look(service, "/models/seg?a=2&b=1")
    second, first = "/jobs/job-aaaaaaa2/pictures/step-00000020.png", "/jobs/job-aaaaaaa1/pictures/step-00000010.png"
    assert 0 < text.index(f'src="{second}"') < text.index(f'src="{first}"')
    assert look(service, "/models/seg?a=2&b=3").count('class="sheet"') == 1


@pytest.mark.parametrize(("role", "may"), [(Role.USER, True), (Role.VIEWER, False)])
def test_what_a_job_has_registered_is_promoted_from_its_page(service: Service, role: Role, may: bool) -> None:
    job_id, attempt_id, bearer = service.running()
    result = {"model": {"name": "seg", "version": "2", "alias": "candidate"}}
    done = service.http.post(f"/api/v1/attempts/{attempt_id}/complete", json={"result": result}, headers=bearer)
    assert done.status_code == 200, done.text
    sign_in(service, token_of(service, role))
    text = look(service, f"/jobs/{job_id}")
    assert 'href="/models/seg"' in text
    assert ('action="/models/seg/promotions"' in text) == may
    if may:
        assert promote(service, version="2", alias="best").headers["location"] == "/models/seg"


def test_a_promotion_goes_through_the_same_gate_as_by_the_api(service: Service) -> None:
    sign_in(service)
    assert promote(service, version="2", alias="@other").headers["location"] == "/models/seg"
    assert service.registry.aliases["other"] == "2"
    rules = {"shards": make_shards(service.home.root / "shards"), "margin": 0.01}
    body = {"rules": rules}
    answer = service.http.put("/api/v1/models/seg/gates/other", json=body, headers=service.bearer)
    assert answer.status_code == 200, answer.text
    assert "better by at least 0.01" in look(service, "/models/seg")
    refused = promote(service, version="1", alias="other")
    assert refused.status_code in (303, 422)
    assert service.registry.aliases["other"] == "2", "not before it has won"
    for fields in ({"version": "1", "alias": "Champion!"}, {"version": "x", "alias": "best"}, {}):
        assert promote(service, **fields).status_code in (404, 422)
    assert service.http.post("/models/seg/promotions", data={"version": "1", "alias": "best"}).status_code == 403


@pytest.mark.parametrize("role", Role)
def test_who_sees_and_does_what(service: Service, role: Role) -> None:
    token = token_of(service, role)
    sign_in(service, token)
    is_operator = role.covers(Role.OPERATOR)
    assert ("Promote" in look(service, "/models/seg")) == role.covers(Role.USER)
    assert (promote(service, version="1", alias="mine").status_code == 303) == role.covers(Role.USER)
    text = look(service, "/operations", 200 if is_operator else 403)
    assert ("Audit log" in text) == is_operator
    assert (f"{role}-1</td>" in text and "Tokens" in text) == role.covers(Role.ADMIN)
    assert ('href="/operations"' in look(service, "/")) == is_operator
    assert token not in text


def test_the_operators_page_tells_rules_health_and_who_did_what(service: Service) -> None:
    for number in range(60):
        service.submit(name=f"job-{number}")
    rules = {"rules": {"workers": 4, "gpus": 2}}
    service.http.put("/api/v1/policies/project/vision", json=rules, headers=service.bearer)
    sign_in(service)
    text = look(service, "/operations")
    assert "<strong>vision</strong>" in text
    assert "PUT /policies/{scope}/{name}" in text
    assert "mlflow.invalid" in text
    assert re.search(r"sqlite, answered in \d+\.\d ms", text)
    assert re.search(r"[\d.]+ [GT]iB of [\d.]+ [GT]iB free, ", text)
    older = text.rpartition("/operations?before=")[2].partition('"')[0]
    assert "POST /jobs" in look(service, f"/operations?before={older}")
