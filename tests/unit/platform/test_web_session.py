from __future__ import annotations

import logging
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from factories import make_queue
from fakes import FakeClock
from segfleet.access.desk import Access
from segfleet.access.roles import Role
from segfleet.access.sessions import LIFE_S, form_key
from segfleet.access.tokens import digest
from segfleet.errors import AccessError, UnauthorizedError
from segfleet.queue.tables import sessions
from segfleet.server.rights import PAGE_RIGHTS, RIGHTS
from segfleet.web import paths
from segfleet.web.pages import create_pages
from segfleet.web.uploads import split_upload
from segfleet.wire import API
from serving import API_TOKEN, FROM_PAGE, URL, Service, no_services, page_key, session_of, sign_in

HTML = {"Accept": "text/html"}
FORM = {**FROM_PAGE, "Content-Type": "application/x-www-form-urlencoded"}


def post(service: Service, path: str, headers: dict[str, str] = FROM_PAGE, **fields: str) -> Any:
    return service.http.post(path, data={"key": page_key(service), **fields}, headers=headers, follow_redirects=False)


def token_of(service: Service, user: str, role: Role) -> str:
    answer = service.http.post(f"{API}/tokens", json={"user": user, "role": role}, headers=service.bearer)
    return str(answer.json()["token"])


def test_a_token_opens_a_session_whose_cookie_no_script_and_no_other_site_gets(service: Service) -> None:
    answer = sign_in(service)
    assert (answer.status_code, answer.headers["location"]) == (303, "/")
    flags = {part.strip().lower() for part in answer.headers["set-cookie"].split(";")[1:]}
    assert flags == {"httponly", "path=/", "samesite=strict"}
    assert service.http.get("/", headers=HTML).status_code == 200


def test_over_https_the_cookie_is_secure_and_bound_to_the_host(service: Service) -> None:
    https = {"token": API_TOKEN}, {**FROM_PAGE, "Origin": "https://127.0.0.1:8700"}
    answer = service.http.post(
        "https://127.0.0.1:8700/sign-in", data=https[0], headers=https[1], follow_redirects=False
    )
    cookie = answer.headers["set-cookie"]
    assert cookie.startswith("__Host-segfleet=")
    assert "; Secure" in cookie


def test_whoever_is_not_signed_in_comes_to_the_sign_in_and_no_further(service: Service) -> None:
    for path in ("/", "/submit", "/jobs/job-aaaaaaaa"):
        answer = service.http.get(path, headers=HTML, follow_redirects=False)
        assert (answer.status_code, answer.headers["location"]) == (303, "/sign-in")
    assert service.http.get("/live").status_code == 401
    assert service.http.post("/jobs", data={"spec": "kind: train"}, headers=FROM_PAGE).status_code == 401
    # A bearer token opens the API, no page: pages have no business with what a script holds.
    assert service.http.get("/live", headers=service.bearer).status_code == 401
    assert service.http.get("/sign-in", headers=HTML).status_code == 200


@pytest.mark.parametrize("token", ["", "wrong", "segfleet_user_0123456789ab_" + "0" * 64, "a" * 5000])
def test_a_wrong_token_opens_nothing_and_is_not_repeated(service: Service, token: str) -> None:
    answer = sign_in(service, token)
    assert answer.status_code == 401
    assert "set-cookie" not in answer.headers
    assert token == "" or token not in answer.text


def test_who_guesses_is_slowed_down(service: Service) -> None:
    statuses = [sign_in(service, "wrong").status_code for _ in range(105)]
    assert statuses[0] == 401
    assert statuses[-1] == 429


def test_no_token_is_in_the_database_in_an_address_or_in_the_log(
    service: Service, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    answer = sign_in(service)
    page = service.http.get("/", headers=HTML)
    session_id = session_of(service)
    assert API_TOKEN not in answer.headers["location"] + answer.text + page.text
    assert session_id not in page.text
    with service.queue.store.read() as tx:
        rows = tx._connection.execute(sessions.select()).all()
        told = str(rows) + str(tx.access.audit(None, 100))
    assert [row.id_hash for row in rows] == [digest(session_id)]
    for secret in (API_TOKEN, session_id):
        assert secret not in told
        assert secret not in caplog.text


def test_signing_out_ends_the_session_on_the_service_too(service: Service) -> None:
    sign_in(service)
    session_id = session_of(service)
    assert post(service, "/sign-out").headers["location"] == "/sign-in"
    service.http.cookies.set("segfleet", session_id)
    assert service.http.get("/live").status_code == 401


def test_a_session_ends_with_its_token(service: Service) -> None:
    token = token_of(service, "ann", Role.USER)
    sign_in(service, token)
    assert service.http.get("/live").status_code == 200
    revoked = service.http.post(f"{API}/tokens/{token.split('_')[2]}/revoke", json={}, headers=service.bearer)
    assert revoked.status_code == 200
    assert service.http.get("/live").status_code == 401


def test_a_session_expires_when_it_is_not_used_and_not_before(tmp_path: Path, queue_url: str) -> None:
    clock = FakeClock()
    access = Access(make_queue(tmp_path, clock, queue_url).store, clock, "home-token")
    session_id = access.sessions.open(access.identify("home-token"), "home-token")
    for _ in range(3):
        clock.advance(LIFE_S - 1)
        assert access.sessions.holder_of(session_id).user == "local"
    clock.advance(LIFE_S)
    with pytest.raises(UnauthorizedError, match="sign in again"):
        access.sessions.holder_of(session_id)


def test_a_session_of_the_home_token_ends_when_that_is_changed(tmp_path: Path, queue_url: str) -> None:
    clock = FakeClock()
    store = make_queue(tmp_path, clock, queue_url).store
    before = Access(store, clock, "home-token")
    session_id = before.sessions.open(before.identify("home-token"), "home-token")
    with pytest.raises(UnauthorizedError):
        Access(store, clock, "another-home-token").sessions.holder_of(session_id)


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site", "Origin": URL},
        {"Sec-Fetch-Site": "none", "Origin": URL},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:9999"},
        {"Origin": "https://evil.example"},
    ],
)
def test_changes_that_no_page_of_ours_asks_for_are_refused(service: Service, headers: dict[str, str]) -> None:
    sign_in(service)
    job_id = service.submit()["id"]
    assert post(service, f"/jobs/{job_id}/cancel", headers).status_code == 403
    assert service.queue.get(job_id).state == "queued"
    assert sign_in(service, headers=headers).status_code == 403


@pytest.mark.parametrize("make_key", [lambda _: "", lambda _: "0" * 64, lambda _: form_key("other"), lambda own: own])
def test_a_form_needs_the_key_of_its_session(service: Service, make_key: Callable[[str], str]) -> None:
    sign_in(service)
    job_id = service.submit()["id"]
    assert post(service, f"/jobs/{job_id}/cancel", key=make_key(session_of(service))).status_code == 403
    assert service.queue.get(job_id).state == "queued"
    assert post(service, f"/jobs/{job_id}/cancel").status_code == 303
    assert service.queue.get(job_id).state == "cancelled"


def test_pages_take_forms_alone_and_the_api_takes_none(service: Service) -> None:
    sign_in(service)
    job_id = service.submit()["id"]
    key = {"X-Form-Key": page_key(service)}
    assert service.http.post(f"/jobs/{job_id}/cancel", json={}, headers={**FROM_PAGE, **key}).status_code == 415
    # A cookie alone is nothing to the API.
    assert service.http.post(f"{API}/jobs/{job_id}/cancel", json={}, headers=FROM_PAGE).status_code == 401
    form = service.http.post(f"{API}/jobs/{job_id}/cancel", data={}, headers={**FORM, **service.bearer})
    assert form.status_code == 415


class _Inline(HTMLParser):
    """Notes whatever the policy would stop: scripts and styles in the page, and what is fetched from elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.found += [f"{tag} {name}" for name in values if name.startswith("on") or name == "style"]
        if tag == "style" or (tag == "script" and not (values.get("src") or "").startswith("/static/")):
            self.found.append(tag)
        source = values.get("src") or (values.get("href") if tag == "link" else None) or "/"
        self.found += [source] if not source.startswith("/") or source.startswith("//") else []


@pytest.mark.parametrize("path", ["/", "/?show=ended", "/submit", "/jobs/{job}", "/jobs/job-aaaaaaaa", "/sign-in"])
def test_pages_forbid_everything_that_they_do_not_need(service: Service, path: str) -> None:
    sign_in(service)
    answer = service.http.get(path.replace("{job}", service.submit()["id"]), headers=HTML)
    policy = dict(part.strip().split(" ", 1) for part in answer.headers["content-security-policy"].split(";"))
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["form-action"] == "'self'"
    assert policy["frame-ancestors"] == policy["base-uri"] == "'none'"
    assert answer.headers["x-frame-options"] == "DENY"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["cache-control"] == "no-store"
    parser = _Inline()
    parser.feed(answer.text)
    assert parser.found == []


def test_static_files_are_typed_and_nothing_else_is_served(service: Service) -> None:
    for name, kind in (("style.css", "text/css"), ("page.js", "text/javascript"), ("icon.svg", "image/svg+xml")):
        answer = service.http.get(f"/static/{name}")
        assert (answer.status_code, answer.headers["content-type"].partition(";")[0]) == (200, kind)
    for name in ("..%2fpages.py", "%2e%2e/pages.py", "frame.html", "nothing.css"):
        assert service.http.get(f"/static/{name}").status_code in (303, 401, 404)


def test_every_page_has_a_right_and_every_right_a_page() -> None:
    routes: list[Any] = []
    for route in create_pages(no_services(), no_services()).routes:
        routes += route.effective_route_contexts() if hasattr(route, "effective_route_contexts") else [route]
    found = {(method, route.path) for route in routes for method in route.methods or () if method != "HEAD"}
    assert found >= PAGE_RIGHTS.keys()
    assert found <= RIGHTS.keys()
    assert {route for route in found if RIGHTS[route] is None} == {
        ("GET", "/sign-in"),
        ("POST", "/sign-in"),
        ("GET", "/static/{name}"),
    }


@pytest.mark.parametrize("role", Role)
def test_each_role_may_on_pages_what_it_may_on_the_api(service: Service, role: Role) -> None:
    foreign = service.submit()["id"]
    sign_in(service, token_of(service, "ann", role))
    for verb in ("cancel", "pause", "resume", "retry", "priority"):
        right = RIGHTS["POST", f"/jobs/{{job_id}}/{verb}"]
        assert right is not None
        is_refused = not role.covers(right.role) or (right.of_own_job and not role.covers(Role.OPERATOR))
        answer = post(service, f"/jobs/{foreign}/{verb}", priority="40")
        assert (answer.status_code == 403) == is_refused, (verb, answer.text)
    may_submit = role.covers(Role.USER)
    assert (service.http.get("/submit", headers=HTML).status_code == 200) == may_submit
    assert (post(service, "/jobs", spec="kind: nothing").status_code == 422) == may_submit
    page = service.http.get("/", headers=HTML).text
    assert ('href="/submit"' in page) == may_submit
    assert ("Clone" in service.http.get(f"/jobs/{foreign}", headers=HTML).text) == may_submit


@pytest.mark.parametrize(
    "cookies",
    [
        "segfleet=abc",
        "theme=dark mode; segfleet=abc",
        "flag; segfleet=abc",
        'p={"x":1}; segfleet=abc',
        "segfleet=abc; flag",
        "segfleet=abc; theme=dark mode",
        "xsegfleet=no; segfleet=abc; segfleet=later",
    ],
)
def test_cookies_of_other_services_of_the_host_are_passed_over(cookies: str) -> None:
    assert paths.session_of(cookies, "http") == "abc"
    assert paths.session_of(cookies, "https") == ""


@pytest.mark.timeout(60)
def test_a_cookie_is_read_in_a_time_that_grows_with_its_length() -> None:
    assert paths.session_of(f"segfleet={'a' * 65}", "http") == ""
    # Python's cookie parser needs many minutes for it.
    assert paths.session_of('a="' + "\\" * 600_000 + '"; segfleet=abc', "http") == "abc"


def test_a_long_sign_in_is_refused_before_it_is_read(service: Service) -> None:
    answer = service.http.post("/sign-in", content=b"token=" + b"%41" * 10_000, headers=FORM)
    assert answer.status_code == 413


@pytest.mark.timeout(60)
def test_a_form_that_would_take_minutes_to_take_apart_is_refused() -> None:
    with pytest.raises(AccessError, match="did not arrive as a browser sends it"):
        split_upload("multipart/form-data; a=" + '";' * 400_000, b"-")
