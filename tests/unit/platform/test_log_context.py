"""Every line says which job, attempt, request and person it is about."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from segfleet.log_context import about, fields
from segfleet.server.log import JsonFormatter
from world import World


@pytest.fixture
def lines() -> Iterator[list[dict[str, Any]]]:
    """What the service logs while the test runs."""
    found: list[dict[str, Any]] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            found.append(json.loads(JsonFormatter(["s3cret"]).format(record)))

    keep, logger = Keep(), logging.getLogger("segfleet")
    before = logger.level
    logger.addHandler(keep)
    logger.setLevel(logging.INFO)
    yield found
    logger.removeHandler(keep)
    logger.setLevel(before)


def test_contexts_nest_and_end(lines: list[dict[str, Any]]) -> None:
    log = logging.getLogger("segfleet.x")
    with about(job="job-a"):
        with about(attempt="a1\n\x1b[2J", who="s3cret"):
            log.info("inner")
        log.info("outer")
    log.info("bare")
    assert [{key: line.get(key) for key in ("message", "job", "attempt", "who")} for line in lines] == [
        {"message": "inner", "job": "job-a", "attempt": "a1\n\x1b[2J", "who": "[hidden]"},
        {"message": "outer", "job": "job-a", "attempt": None, "who": None},
        {"message": "bare", "job": None, "attempt": None, "who": None},
    ]
    assert dict(fields()) == {}
    assert set(lines[2]) == {"time", "level", "logger", "message"}


def test_a_refused_request_can_be_found_in_the_log_by_its_id(service: Any, lines: list[dict[str, Any]]) -> None:
    job_id = service.submit()["id"]
    url = f"/api/v1/jobs/{job_id}/resume-it"
    answer = service.http.post(url, json={}, headers={**service.bearer, "X-Request-Id": "mine-1"})
    assert (answer.headers["X-Request-Id"], answer.json()["request_id"]) == ("mine-1", "mine-1")
    (line,) = lines
    assert (line["request_id"], line["job"], line["who"]) == ("mine-1", job_id, "local")


@pytest.mark.parametrize("given", ["", "a b", "x" * 65, "a\tb", 'a"b'])
def test_a_name_that_is_none_is_replaced(service: Any, given: str) -> None:
    ids = {service.http.get("/healthz", headers={"X-Request-Id": given}).headers["X-Request-Id"] for _ in range(2)}
    assert len(ids) == 2
    assert given not in ids


def test_a_foreign_caller_is_answered_with_an_id_too(service: Any) -> None:
    answer = service.http.get("/api/v1/jobs")
    assert answer.status_code == 401
    assert answer.json()["request_id"] == answer.headers["X-Request-Id"] != ""


def test_an_attempts_requests_name_it(service: Any, lines: list[dict[str, Any]]) -> None:
    attempt_id = service.start(service.submit()["id"])
    service.claim(attempt_id, "wrong code")
    (line,) = (line for line in lines if "claim" in line["message"])
    assert (line["attempt"], line["job"]) == (attempt_id, attempt_id.rpartition("-")[0])
    assert "who" not in line


def test_the_dispatchers_lines_name_the_job(tmp_path: Path, lines: list[dict[str, Any]]) -> None:
    world = World(tmp_path)
    job = world.submit()
    world.step()
    attempt_id = f"{job.id}-a1"
    world.ray.restart_head()
    world.pass_time(10.0)
    world.queue.store.close()
    lost = [line for line in lines if "given up" in line["message"]]
    assert lost
    assert {line["job"] for line in lost} == {job.id}
    assert lost[0]["attempt"] == attempt_id
