"""Every route with every kind of caller, generated from the route table: a route without a rule fails here."""

from __future__ import annotations

import re
from typing import Any

import pytest

from segfleet.access.roles import Role
from segfleet.server.api import create_app
from segfleet.server.rights import PAGE_RIGHTS, Right
from segfleet.server.rights import RIGHTS as ALL_RIGHTS
from segfleet.wire import API
from serving import API_TOKEN, no_services, prepare_spec

# The pages have a test of their own: they ask for a session instead of a token.
RIGHTS = {route: right for route, right in ALL_RIGHTS.items() if route not in PAGE_RIGHTS}
VALUES = {
    "attempt_id": "job-aaaaaaaa-a1",
    "name": "seg",
    "ref": "1",
    "alias": "best",
    "promotion_id": "pro-0",
    "scope": "project",
    "token_id": "0123456789ab",
    "webhook_id": "wh-0123456789ab",
}


def table() -> set[tuple[str, str]]:
    routes: list[Any] = []
    for route in create_app(no_services(), "unused").routes:
        routes += route.effective_route_contexts() if hasattr(route, "effective_route_contexts") else [route]
    methods = ((method, route.path) for route in routes for method in route.methods or ())
    return {
        (method, path.removeprefix(API))
        for method, path in methods
        if method not in ("HEAD", "OPTIONS") and not path.endswith("openapi.json")
    }


# What the service answers to each caller, as a person would say it.
NEEDED = {route: right.role for route, right in RIGHTS.items() if right is not None}
OWN = {route for route, right in RIGHTS.items() if right is not None and right.of_own_job}


def token(service: Any, user: str, role: Role, **more: Any) -> dict[str, str]:
    body = {"user": user, "role": role, **more}
    answer = service.http.post(f"{API}/tokens", json=body, headers=service.bearer)
    assert answer.status_code == 201, answer.text
    return {"Authorization": f"Bearer {answer.json()['token']}"}


def ask(service: Any, route: tuple[str, str], headers: dict[str, str], job_id: str = "job-aaaaaaaa") -> Any:
    method, path = route
    url = API + re.sub(r"{(\w+)}", lambda match: {**VALUES, "job_id": job_id}[match[1]], path)
    body = {} if method == "GET" else {"json": {"priority": 40} if url.endswith("priority") else {}}
    return service.http.request(method, url, headers=headers, **body)


def test_every_route_has_a_right_and_every_right_a_route() -> None:
    assert table() == RIGHTS.keys()


def test_a_route_without_a_right_is_refused_to_an_admin(service: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    fewer = {route: right for route, right in RIGHTS.items() if route != ("GET", "/jobs")}
    monkeypatch.setattr("segfleet.server.rights.RIGHTS", fewer)
    answer = ask(service, ("GET", "/jobs"), service.bearer)
    assert (answer.status_code, answer.json()["code"]) == (403, "access")


def test_only_what_needs_no_person_is_without_a_role() -> None:
    bare = {path for (_, path), right in RIGHTS.items() if right is None}
    assert {path for path in bare if not path.startswith("/attempts/{attempt_id}/")} == {"/healthz"}


@pytest.mark.parametrize("role", Role)
def test_each_role_may_what_the_table_says(service: Any, role: Role) -> None:
    bearer = token(service, "ann", role)
    foreign = service.submit()["id"]
    for route, needed in NEEDED.items():
        answer = ask(service, route, bearer, foreign)
        is_refused = not role.covers(needed) or (route in OWN and not role.covers(Role.OPERATOR))
        assert (answer.status_code == 403) == is_refused, (route, answer.text)
        if is_refused:
            assert answer.json()["code"] == "access"
            assert str(needed) in answer.text if not role.covers(needed) else "'local'" in answer.text


@pytest.mark.parametrize("kind", ["none", "garbage", "expired", "revoked", "other secret", "cut"])
def test_no_route_lets_in_who_has_no_valid_token(service: Any, kind: str) -> None:
    bearer = token(service, "ann", Role.ADMIN, expires="1s" if kind == "expired" else "never")
    text = bearer["Authorization"]
    if kind == "revoked":
        token_id = text.split("_")[2]
        assert service.http.post(f"{API}/tokens/{token_id}/revoke", json={}, headers=service.bearer).status_code == 200
    other = text[:-1] + ("0" if text[-1] != "0" else "1")
    changed = {"none": {}, "garbage": {"Authorization": "Bearer segfleet_user_x"}, "cut": {"Authorization": text[:-1]}}
    headers = changed.get(kind, {"Authorization": other} if kind == "other secret" else bearer)
    for route in NEEDED:
        answer = ask(service, route, headers)
        assert answer.status_code == 401, (route, answer.text)
        assert "segfleet_user" not in answer.text
        if kind in ("expired", "revoked"):
            assert kind in answer.text


def test_a_users_token_is_no_attempts_token(service: Any) -> None:
    bearer = token(service, "ann", Role.ADMIN)
    attempt_id = service.start(service.submit()["id"])
    assert service.claim(attempt_id).status_code == 200
    for method, path in (route for route, right in RIGHTS.items() if right is None and "attempts" in route[1]):
        url = API + path.replace("{attempt_id}", attempt_id)
        assert service.http.request(method, url, headers=bearer, json={}).status_code == 401


def test_users_change_their_own_jobs_and_no_others(service: Any) -> None:
    ann, bob = token(service, "ann", Role.USER), token(service, "bob", Role.USER)
    made = service.http.post(f"{API}/jobs", json={"spec": prepare_spec()}, headers=ann).json()
    assert made["owner"] == "ann"
    cancel = f"{API}/jobs/{made['id']}/cancel"
    refused = service.http.post(cancel, json={}, headers=bob)
    assert (refused.status_code, refused.json()["code"]) == (403, "access")
    assert refused.json()["message"] == f"job {made['id']} belongs to 'ann': ask its owner or an operator"
    assert service.http.get(f"{API}/jobs/{made['id']}", headers=bob).status_code == 200
    assert service.http.post(cancel, json={}, headers=ann).json()["state"] == "cancelled"
    events = service.http.get(f"{API}/jobs/{made['id']}/events", headers=bob).json()["events"]
    assert {event["who"] for event in events} == {"ann"}


def test_a_user_submits_to_own_projects_and_at_usual_priorities(service: Any) -> None:
    ann = token(service, "ann", Role.USER, projects=["vision"])
    for queue, status in (({"project": "vision"}, 201), ({}, 403), ({"project": "vision", "priority": 51}, 403)):
        for path in ("/jobs", "/check"):
            answer = service.http.post(API + path, json={"spec": prepare_spec(queue=queue)}, headers=ann)
            assert answer.status_code == (200 if (path, status) == ("/check", 201) else status), answer.text
    token(service, "ann", Role.OPERATOR)
    spec = prepare_spec(queue={"project": "maps", "priority": 90})
    assert service.http.post(f"{API}/jobs", json={"spec": spec}, headers=ann).status_code == 201


def test_a_priority_that_the_operator_fixes_is_nobodys_wish(service: Any) -> None:
    ann = token(service, "ann", Role.USER, projects=["vision"])
    rules = {"rules": {"forced": {"queue": {"priority": 80}}}}
    assert service.http.put(f"{API}/policies/project/vision", json=rules, headers=service.bearer).status_code == 200
    # Left out, as it is fixed, or otherwise: it comes out the same.
    for queue in ({}, {"priority": 80}, {"priority": 90}, {"priority": 10}):
        spec = prepare_spec(queue={"project": "vision", **queue})
        answer = service.http.post(f"{API}/jobs", json={"spec": spec}, headers=ann)
        assert (answer.status_code, answer.json()["priority"]) == (201, 80), answer.text
    service.http.put(f"{API}/policies/project/vision", json={"rules": {}}, headers=service.bearer)
    spec = prepare_spec(queue={"project": "vision", "priority": 80})
    assert service.http.post(f"{API}/jobs", json={"spec": spec}, headers=ann).status_code == 403


def test_idempotency_keys_of_two_users_do_not_meet(service: Any) -> None:
    ids = set()
    for user in ("ann", "bob"):
        headers = {**token(service, user, Role.USER), "Idempotency-Key": "k"}
        ids.add(service.http.post(f"{API}/jobs", json={"spec": prepare_spec()}, headers=headers).json()["id"])
    assert len(ids) == 2


def test_the_homes_token_is_the_first_admin(service: Any) -> None:
    assert service.submit()["owner"] == "local"
    assert service.http.get(f"{API}/tokens", headers=service.bearer).json() == {"tokens": []}
    assert Right(Role.ADMIN) == RIGHTS["POST", "/tokens"]
    assert API_TOKEN not in service.http.get(f"{API}/audit", headers=service.bearer).text
