"""The operator's forms: rules, tokens and what is kept, with the rights and the log entries of the API's routes."""

from __future__ import annotations

import re
from typing import Any

import pytest

from segfleet.access.roles import Role
from serving import FROM_PAGE, Service, page_key, sign_in

HTML = {"Accept": "text/html"}
EVIL = "<script>alert(1)</script>\u202e"
RULES = {"scope": "project", "name": "vision", "form": "rules-new"}
TOKEN = {"user": "dora", "role": "user", "projects": "aerial, night", "expires": "12h", "form": "token"}


def post(service: Service, path: str, **fields: str) -> Any:
    data = {"key": page_key(service), **fields}
    return service.http.post(path, data=data, headers=FROM_PAGE | HTML, follow_redirects=False)


def ask(service: Service, path: str) -> Any:
    return service.http.get(f"/api/v1{path}", headers=service.bearer).json()


def text_of(service: Service, path: str = "/operations") -> str:
    answer = service.http.get(path, headers=HTML)
    assert answer.status_code == 200, answer.text
    return str(answer.text)


def rules_of(service: Service) -> dict[str, Any]:
    return {f"{one['scope']}:{one['name']}": one["rules"] for one in ask(service, "/policies")["policies"]}


def last_entry(service: Service) -> dict[str, Any]:
    entry: dict[str, Any] = ask(service, "/audit")["entries"][0]
    return entry


def test_rules_are_set_changed_and_removed(service: Service) -> None:
    sign_in(service)
    answer = post(service, "/policies", **RULES, rules="workers=4\n\n limits.queue.time_limit=48h \nweight=2.5\n")
    assert answer.headers["location"] == "/operations#rules-title"
    known = {"workers": 4, "weight": 2.5, "limits": {"queue": {"time_limit": "48h"}}}
    assert rules_of(service) == {"project:vision": known}
    entry = last_entry(service)
    assert (entry["action"], entry["outcome"]) == ("POST /policies", "done")
    assert "project vision: " in entry["subject"]
    assert "workers: null -> 4" in entry["subject"]
    text = text_of(service)
    assert "limits.queue.time_limit=48h\nweight=2.5\nworkers=4</textarea>" in text
    assert post(service, "/policies", scope="project", name="vision", rules="workers=5").status_code == 303
    assert rules_of(service) == {"project:vision": {"workers": 5}}
    assert post(service, "/policies", scope="project", name="vision", rules="").status_code == 303
    assert post(service, "/policies", scope="cluster", name="", rules="grace=3m").status_code == 303
    assert rules_of(service) == {"cluster:cluster": {"grace": "3m"}}


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({**RULES, "rules": "workers=many"}, "workers"),
        ({**RULES, "rules": "speed=9"}, "speed"),
        ({**RULES, "rules": "workers"}, "is not of the form"),
        ({**RULES, "name": f"no {EVIL}", "rules": "workers=4"}, "cannot name a project"),
        ({**RULES, "scope": "world", "rules": "workers=4"}, "is unknown"),
    ],
)
def test_a_wrong_rule_is_told_in_its_form_with_what_was_typed(
    service: Service, fields: dict[str, str], words: str
) -> None:
    sign_in(service)
    answer = post(service, "/policies", **fields)
    assert answer.status_code == 422
    problems = answer.text.partition('id="rules-new-problems"')[2].partition("</ul>")[0]
    assert words in problems
    assert f"{fields['rules']}</textarea>" in answer.text
    assert "<script>alert" not in answer.text
    assert "\u202e" not in answer.text
    assert rules_of(service) == {}


def test_a_token_is_shown_once_and_works_until_it_is_revoked(service: Service) -> None:
    sign_in(service)
    answer = post(service, "/tokens", **TOKEN)
    assert answer.status_code == 200
    assert answer.headers["cache-control"] == "no-store"
    found = re.search(r'class="secret">([^<]+)<', answer.text)
    assert found is not None
    bearer = {"Authorization": f"Bearer {found[1]}"}
    assert service.http.get("/api/v1/status", headers=bearer).status_code == 200
    (token,) = ask(service, "/tokens")["tokens"]
    assert (token["user"], token["role"], token["projects"]) == ("dora", "user", ["aerial", "night"])
    assert token["expires_at"] - token["created_at"] == pytest.approx(12 * 3600, abs=60)
    assert found[1] not in text_of(service)
    assert found[1] not in str(ask(service, "/audit"))
    assert f"token {token['id']}" in last_entry(service)["subject"]
    assert post(service, f"/tokens/{token['id']}/revoke").headers["location"] == "/operations#tokens-title"
    assert service.http.get("/api/v1/status", headers=bearer).status_code == 401
    assert last_entry(service)["action"] == "POST /tokens/{token_id}/revoke"
    assert f"/tokens/{token['id']}/revoke" not in text_of(service)
    assert post(service, "/tokens/nothing/revoke").status_code == 404


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"user": EVIL}, "user"),
        ({"user": "local"}, "cannot name a user"),
        ({"role": "king"}, "role"),
        ({"projects": "no good"}, "projects"),
        ({"expires": "soon"}, "expires"),
        ({"expires": ""}, "expires"),
    ],
)
def test_a_token_that_cannot_be_is_told_in_its_form(service: Service, fields: dict[str, str], words: str) -> None:
    sign_in(service)
    answer = post(service, "/tokens", **TOKEN | fields)
    assert answer.status_code == 422
    assert words in answer.text.partition('id="token-problems"')[2].partition("</ul>")[0]
    assert "<script>alert" not in answer.text
    assert ask(service, "/tokens")["tokens"] == []


def test_what_is_kept_is_changed_shown_and_let_go(service: Service) -> None:
    sign_in(service)
    assert "Nothing may go" in text_of(service, "/retention/plan")
    answer = post(service, "/retention", form="retention", rules="logs_after=1m\nkeep_latest=false")
    assert answer.headers["location"] == "/retention/plan"
    rules = ask(service, "/retention")["rules"]
    assert (rules["logs_after"], rules["keep_latest"], rules["runs_after"]) == ("1m", False, None)
    job_id = service.submit()["id"]
    service.http.post(f"/api/v1/jobs/{job_id}/cancel", json={}, headers=service.bearer)
    log = service.home.logs / f"{job_id}-a1.log"
    log.write_text("words")
    for _ in range(70):
        service.queue.clock()
    text = text_of(service, "/retention/plan")
    assert log.name in text
    assert "1 pieces" not in text
    assert log.exists(), "looking deletes nothing"
    done = post(service, "/retention/apply")
    assert done.status_code == 200
    assert "Gone: 1 piece," in done.text
    assert not log.exists()
    assert "Nothing may go" in done.text
    refused = post(service, "/retention", form="retention", rules="logs_after=soon")
    assert refused.status_code == 422
    assert "logs_after" in refused.text.partition('id="retention-problems"')[2].partition("</ul>")[0]


@pytest.mark.parametrize("role", Role)
def test_each_role_changes_what_it_may_over_the_api(service: Service, role: Role) -> None:
    body = {"user": f"{role}-1", "role": role}
    token = service.http.post("/api/v1/tokens", json=body, headers=service.bearer).json()
    sign_in(service, token["token"])
    is_operator, is_admin = role.covers(Role.OPERATOR), role.covers(Role.ADMIN)
    assert (post(service, "/policies", **RULES, rules="workers=4").status_code == 303) == is_operator
    assert (service.http.get("/retention/plan", headers=HTML).status_code == 200) == is_operator
    for path, fields in (("/retention", {"rules": ""}), ("/retention/apply", {}), ("/tokens", TOKEN)):
        assert (post(service, path, **fields).status_code in (200, 303)) == is_admin
    if is_operator:
        text = text_of(service)
        assert ("Make a token" in text) == ("Change what is kept" in text) == is_admin
    assert (post(service, f"/tokens/{token['id']}/revoke").status_code == 303) == is_admin


@pytest.mark.parametrize("path", ["/policies", "/tokens", "/tokens/abc/revoke", "/retention", "/retention/apply"])
def test_another_sites_form_changes_nothing(service: Service, path: str) -> None:
    sign_in(service)
    data = {**RULES, **TOKEN, "rules": "workers=4"}
    elsewhere = {"Origin": "http://127.0.0.1:9999", "Sec-Fetch-Site": "same-site"}
    for headers, key in ((elsewhere, page_key(service)), (FROM_PAGE, ""), (FROM_PAGE, "0" * 64)):
        answer = service.http.post(path, data={**data, "key": key}, headers=headers, follow_redirects=False)
        assert answer.status_code == 403
    assert rules_of(service) == {}
    assert ask(service, "/tokens")["tokens"] == []
