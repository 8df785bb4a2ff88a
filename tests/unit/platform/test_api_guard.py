"""What every route promises, generated from the route table so that a new route is covered without being named."""

from __future__ import annotations

import asyncio
import json
import logging
import re
from typing import Any

import pytest
from fastapi.testclient import TestClient

from segfleet.access.desk import Access
from segfleet.access.tokens import same_secret
from segfleet.errors import SettingsError
from segfleet.server.api import create_app
from segfleet.server.guard import MAX_BODY_BYTES, Guard
from segfleet.server.limits import Rate
from serving import API_TOKEN, URL, no_services

OPEN = {"/healthz"}


def routes() -> list[tuple[str, str]]:
    # The table needs no services: they are only touched by requests.
    app = create_app(no_services(), "unused")
    paths = [
        (method, route.path)
        for route in _flat(app.routes)
        for method in sorted(route.methods or ())
        if method not in ("HEAD", "OPTIONS")
    ]
    assert len(paths) > 20
    return paths


def _flat(found: Any) -> list[Any]:
    # Newer FastAPI keeps included routers as they are; older ones copy their routes.
    nested = [
        list(route.effective_route_contexts()) if hasattr(route, "effective_route_contexts") else [route]
        for route in found
    ]
    return [route for routes in nested for route in routes if route.methods]


Route = tuple[str, str]
GUARDED = [(method, path) for method, path in routes() if path not in OPEN]
WITH_BODY = [(method, path) for method, path in GUARDED if method in ("POST", "PUT")]
ATTEMPTS = [(method, path) for method, path in GUARDED if "/attempts/" in path]


def statuses(service: Any, table: list[Route], headers: dict[str, Any], **more: Any) -> dict[int, list[Route]]:
    """Which routes answered with which status; problem documents throughout."""
    found: dict[int, list[Route]] = {}
    for method, path in table:
        body = more if more or method == "GET" else {"json": {}}
        answer = service.http.request(method, filled(path), headers=headers, **body)
        assert "Traceback" not in answer.text
        if answer.status_code >= 400:
            assert answer.headers["Content-Type"] == "application/problem+json"
            assert {"status", "title", "code", "message"} <= answer.json().keys()
        found.setdefault(answer.status_code, []).append((method, path))
    return found


def filled(path: str) -> str:
    values = {"job_id": "job-aaaaaaaa", "attempt_id": "job-aaaaaaaa-a1", "name": "seg", "ref": "1", "scope": "project"}
    values |= {"token_id": "0123456789ab", "webhook_id": "wh-0123456789ab"}
    values |= {"number": "1", "alias": "best", "promotion_id": "pro-0"}
    return re.sub(r"{(\w+)}", lambda match: values[match[1]], path)


@pytest.mark.parametrize(
    "authorization",
    [None, "Bearer wrong", "Bearer ", "Basic cmlnaHQ6", "Bearer right-token-of-the-servicf", b"Bearer \xff\xfe"],
)
def test_every_route_refuses_a_missing_or_wrong_token(service: Any, authorization: str | None) -> None:
    headers = {} if authorization is None else {"Authorization": authorization}
    assert statuses(service, GUARDED, headers) == {401: GUARDED}


def test_no_guard_stands_without_a_token(service: Any) -> None:
    with pytest.raises(SettingsError, match="token is empty"):
        Access(service.queue.store, service.queue.clock, "")
    assert not same_secret("", "")


def test_a_refusal_names_the_scheme(service: Any) -> None:
    assert service.http.get("/api/v1/jobs").headers["WWW-Authenticate"] == "Bearer"


def test_the_services_token_is_no_attempts_token(service: Any) -> None:
    attempt_id = service.start(service.submit()["id"])
    assert service.claim(attempt_id).status_code == 200
    table = [(method, path.replace("{attempt_id}", attempt_id)) for method, path in ATTEMPTS]
    assert statuses(service, table, service.bearer) == {401: table}


def test_one_attempts_token_is_not_anothers(service: Any) -> None:
    _, _, bearer = service.running()
    other = service.start(service.submit()["id"])
    table = [(method, path.replace("{attempt_id}", other)) for method, path in ATTEMPTS]
    assert statuses(service, table, bearer) == {401: table}


def test_an_attempts_token_opens_nothing_else(service: Any) -> None:
    _, _, bearer = service.running()
    table = [route for route in GUARDED if route not in ATTEMPTS]
    assert statuses(service, table, bearer) == {401: table}


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8700", "127.0.0.1.evil.example", "", "127.0.0.1:x"])
def test_every_route_refuses_a_foreign_host(service: Any, host: str) -> None:
    table = [*GUARDED, ("GET", "/healthz")]
    assert statuses(service, table, {**service.bearer, "Host": host}) == {421: table}


def test_local_hosts_are_served(service: Any) -> None:
    for host in ("127.0.0.1:8700", "localhost:8700", "LOCALHOST", "[::1]", "[::1]:8700"):
        assert service.http.get("/healthz", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://localhost.evil.example", "http://[::1"])
def test_every_route_refuses_a_foreign_page(service: Any, origin: str) -> None:
    assert statuses(service, GUARDED, {**service.bearer, "Origin": origin}) == {403: GUARDED}


@pytest.mark.parametrize("media_type", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""])
def test_every_post_refuses_what_a_web_page_can_send(service: Any, media_type: str) -> None:
    headers = {**service.bearer, "Content-Type": media_type}
    assert statuses(service, WITH_BODY, headers, content=b"{}") == {415: WITH_BODY}


def test_every_post_refuses_a_huge_body(service: Any) -> None:
    headers = {**service.bearer, "Content-Type": "application/json"}
    assert statuses(service, WITH_BODY, headers, content=b" " * (MAX_BODY_BYTES + 1)) == {413: WITH_BODY}


def test_a_huge_body_without_a_length_is_refused(service: Any) -> None:
    headers = {**service.bearer, "Content-Type": "application/json"}
    pieces = (b" " * 65536 for _ in range(1000))
    assert service.http.post("/api/v1/check", headers=headers, content=pieces).status_code == 413


@pytest.mark.parametrize("length", [b"-1", b"1e3", b"\xb2", b"1" + b"0" * 30])
def test_odd_lengths_are_refused(service: Any, length: bytes) -> None:
    headers = {**service.bearer, "Content-Type": "application/json", "Content-Length": length}
    assert service.http.post("/api/v1/check", headers=headers, content=b"{}").status_code == 413


def test_a_body_that_never_comes_is_refused(service: Any) -> None:
    sent: list[Any] = []

    async def never() -> Any:
        await asyncio.sleep(3600)

    async def send(message: Any) -> None:
        sent.append(message)

    headers = [(b"host", b"localhost"), (b"authorization", b"Bearer t"), (b"content-type", b"application/json")]
    scope = {"type": "http", "method": "POST", "path": "/api/v1/jobs", "headers": headers}
    access = Access(service.queue.store, service.queue.clock, "t")
    asyncio.run(Guard(service.http.app, access, body_timeout_s=0.01)(scope, never, send))
    assert sent[0]["status"] == 408


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b"null", b'"x"', b"[" * 200_000, b'{"a": ' * 5_000, b"\xff\xfe", b"1e999", b"9" * 5000],
    ids=lambda body: repr(body[:8]),
)
def test_malformed_bodies_are_the_callers_fault(service: Any, body: bytes) -> None:
    headers = {**service.bearer, "Content-Type": "application/json"}
    assert statuses(service, WITH_BODY, headers, content=body).keys() <= {400, 401, 422}


def test_an_unknown_path_needs_a_token_too(service: Any) -> None:
    assert service.http.get("/api/v1/nothing").status_code == 401
    assert service.http.get("/docs").status_code == 401
    answer = service.http.get("/api/v1/nothing", headers=service.bearer)
    assert (answer.status_code, answer.json()["code"]) == (404, "http_404")
    assert (
        service.http.delete("/api/v1/jobs", headers={**service.bearer, "Content-Type": "application/json"}).json()[
            "status"
        ]
        == 405
    )


def test_of_a_refused_path_only_the_beginning_is_logged(service: Any, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        service.http.get("/" + "x" * 5000)
    (line,) = [record.getMessage() for record in caplog.records if "refused" in record.getMessage()]
    assert line == f"GET /{'x' * 199}: refused, 401"


def test_health_is_open_and_says_nothing(service: Any) -> None:
    answer = service.http.get("/healthz")
    assert answer.json() == {"status": "ok"}
    assert answer.headers["X-Content-Type-Options"] == "nosniff"


def test_a_fault_of_ours_shows_no_traceback(service: Any, caplog: pytest.LogCaptureFixture) -> None:
    def broken() -> None:
        raise RuntimeError("a path of ours: /secret/place")

    service.queue.counts = broken
    with caplog.at_level(logging.ERROR):
        answer = service.http.get("/api/v1/status", headers=service.bearer)
    assert answer.status_code == 500
    assert "secret" not in answer.text
    assert "Traceback" not in answer.text
    incident = re.search(r"incident (\w+)", answer.json()["message"])
    assert incident is not None
    assert incident[1] in caplog.text
    assert "/secret/place" in caplog.text


def test_a_malformed_request_is_not_repeated_in_the_answer(service: Any) -> None:
    answer = service.http.post("/api/v1/check", json={"spec": "hunter2"}, headers=service.bearer)
    assert answer.status_code == 422
    assert "hunter2" not in answer.text
    assert answer.json()["problems"][0]["path"] == "body.spec"


def test_the_openapi_document_lists_every_route(service: Any) -> None:
    document = service.http.get("/api/v1/openapi.json", headers=service.bearer).json()
    listed = {(method.upper(), path) for path, methods in document["paths"].items() for method in methods}
    assert {route for route in GUARDED if not route[1].endswith("openapi.json")} <= listed
    json.dumps(document)


def guarded(service: Any, **options: Any) -> TestClient:
    access = Access(service.queue.store, service.queue.clock, API_TOKEN)
    return TestClient(Guard(service.http.app, access, **options), base_url=URL)


def test_names_that_the_operator_gave_are_served(service: Any) -> None:
    app = create_app(service.http.app.state.services, API_TOKEN, ["fleet.example", "[2001:db8::1]"])
    http = TestClient(app, base_url=URL)
    for host in ("fleet.example", "Fleet.Example:8443", "[2001:db8::1]:443", "localhost"):
        assert http.get("/healthz", headers={"Host": host}).status_code == 200
    assert http.get("/healthz", headers={"Host": "evil.example"}).status_code == 421


def test_a_token_that_asks_too_often_has_to_wait(service: Any) -> None:
    http = guarded(service, requests=Rate(burst=2, per_s=0.0))
    answers = [http.get("/api/v1/jobs", headers=service.bearer) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200, 200, 429]
    assert (answers[2].json()["code"], answers[2].headers["Retry-After"]) == ("too_many", "2")


def test_failures_of_an_address_do_not_lock_out_valid_tokens(service: Any) -> None:
    http = guarded(service, failures=Rate(burst=2, per_s=0.0))
    wrong = {"Authorization": "Bearer wrong"}
    assert [http.get("/api/v1/jobs", headers=wrong).status_code for _ in range(3)] == [401, 401, 429]
    assert http.get("/api/v1/jobs", headers=service.bearer).status_code == 200
