from __future__ import annotations

import json
import shlex
from typing import Any

import httpx
import pytest

from segfleet.cluster.launcher import (
    ClusterUnreachableError,
    Launcher,
    RayJobStatus,
    RayState,
    SubmissionRefusedError,
    entrypoint,
)
from segfleet.errors import LaunchError
from segfleet.queue.machines import Machine, usable
from segfleet.queue.scheduling.values import Node

# Bodies as Ray 2.60 sends them, shortened.
EXISTS = (
    "Traceback (most recent call last):\n"
    "RuntimeError: Request failed with status code 400: Traceback (most recent call last):\n"
    "ValueError: Job with submission_id job-aaaaaaaa-a1 already exists. Please use a different submission_id.\n.\n"
)


def table(*rows: dict[str, Any]) -> dict[str, Any]:
    """As Ray's state API wraps what it lists."""
    return {"result": True, "data": {"result": {"result": list(rows)}}}


NODES = table(
    {"node_id": "a", "state": "ALIVE", "resources_total": {"CPU": 2.0, "memory": 1e9}},
    {"node_id": "b", "node_ip": "10.0.0.2", "state": "ALIVE", "resources_total": {"CPU": 8.0, "GPU": 4.0}},
    {"node_id": "c", "state": "DEAD", "resources_total": {"CPU": 64.0}},
)
_BUNDLE = {"node_id": "b", "unit_resources": {"CPU": 2.0, "GPU": 1.0}}
GROUPS = table(
    {"state": "CREATED", "bundles": [_BUNDLE, _BUNDLE]},
    {"state": "CREATED", "bundles": [{"node_id": "b", "unit_resources": {"CPU": 0.5, "GPU": 1.0}}]},
    {"state": "PENDING", "bundles": [{"node_id": None, "unit_resources": {"CPU": 8.0}}]},
    {"state": "REMOVED", "bundles": [_BUNDLE]},
)


class Ray:
    """Answers each request with the next canned response and keeps the requests."""

    def __init__(self, *answers: httpx.Response | Exception) -> None:
        self.answers, self.requests = list(answers), list[httpx.Request]()
        self.to_strangers = 401
        self.launcher = Launcher("http://ray:8265", "secret", transport=httpx.MockTransport(self._answer))

    def _answer(self, request: httpx.Request) -> httpx.Response:
        if "authorization" not in request.headers:
            return httpx.Response(self.to_strangers)
        self.requests.append(request)
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


def submit(ray: Ray) -> None:
    ray.launcher.submit("job-aaaaaaaa-a1", "python -m x", {"A": "1"}, {"job": "job-aaaaaaaa"})


def test_a_submission_names_its_id_and_carries_the_token() -> None:
    ray = Ray(httpx.Response(200, json={"submission_id": "job-aaaaaaaa-a1"}))
    submit(ray)
    [request] = ray.requests
    assert request.headers["authorization"] == "Bearer secret"
    assert json.loads(request.content) == {
        "entrypoint": "python -m x",
        "submission_id": "job-aaaaaaaa-a1",
        "metadata": {"job": "job-aaaaaaaa"},
        "runtime_env": {"env_vars": {"A": "1"}},
    }


def test_an_id_that_ray_knows_already_counts_as_taken() -> None:
    submit(Ray(httpx.Response(500, text=EXISTS)))


@pytest.mark.parametrize(
    ("answer", "error", "words"),
    [
        (httpx.Response(400, text="Traceback\nTypeError: bad env\n\n"), SubmissionRefusedError, "TypeError: bad env"),
        (httpx.Response(500, text="No available agent"), LaunchError, "HTTP 500: No available agent"),
        (httpx.Response(500, text=EXISTS.replace("-a1", "-a2")), LaunchError, "HTTP 500"),
        (httpx.Response(401, text="no"), ClusterUnreachableError, "refuses the service's token"),
        (httpx.Response(403, text="no"), ClusterUnreachableError, "refuses the service's token"),
        (httpx.ConnectError("refused"), ClusterUnreachableError, "cannot be reached"),
        (httpx.ReadTimeout("slow"), ClusterUnreachableError, "ReadTimeout"),
    ],
)
def test_failures_of_a_submission_tell_what_to_do(
    answer: httpx.Response | Exception, error: type[LaunchError], words: str
) -> None:
    with pytest.raises(LaunchError, match=words) as caught:
        submit(Ray(answer))
    assert type(caught.value) is error


def test_status_of_known_and_unknown_submissions() -> None:
    ray = Ray(
        httpx.Response(
            200, json={"status": "FAILED", "message": "exit code 1, last available logs (truncated):\na line\n"}
        ),
        httpx.Response(404, text="does not exist"),
        httpx.Response(200, json={"status": "PENDING", "message": None}),
    )
    failed = ray.launcher.status("job-aaaaaaaa-a1")
    assert failed == RayJobStatus(RayState.FAILED, "exit code 1")
    assert failed.is_terminal
    assert ray.launcher.status("job-aaaaaaaa-a1") is None
    pending = ray.launcher.status("job-aaaaaaaa-a1")
    assert pending is not None
    assert not pending.is_terminal


@pytest.mark.parametrize(
    "answer",
    [
        httpx.Response(200, json={"status": "SLEEPING"}),
        httpx.Response(200, text="<html>a login page</html>"),
        httpx.Response(200, json=["no", "object"]),
        httpx.Response(502, text="bad gateway"),
    ],
)
def test_an_answer_that_is_not_rays_is_an_error_never_a_status(answer: httpx.Response) -> None:
    with pytest.raises(LaunchError):
        Ray(answer).launcher.status("job-aaaaaaaa-a1")


def test_stopping_and_reading_what_ray_does_not_know_does_nothing() -> None:
    ray = Ray(httpx.Response(404), httpx.Response(200, json={"stopped": False}), httpx.Response(404))
    ray.launcher.stop("job-aaaaaaaa-a1")
    ray.launcher.stop("job-aaaaaaaa-a1")
    assert ray.launcher.logs("job-aaaaaaaa-a1") == ""
    assert [request.method for request in ray.requests] == ["POST", "POST", "GET"]


def test_living_nodes_are_told_with_what_is_reserved_of_them() -> None:
    ray = Ray(httpx.Response(200, json=NODES), httpx.Response(200, json=GROUPS))
    assert ray.launcher.machines() == (Machine("a", "a", 2, 0, 0, 0), Machine("b", "10.0.0.2", 8, 4, 5, 3))
    with pytest.raises(LaunchError, match="unknown way"):
        Ray(httpx.Response(200, json={"data": None})).launcher.machines()
    with pytest.raises(LaunchError, match="unknown way"):
        Ray(httpx.Response(200, json=table({"state": "ALIVE"})), httpx.Response(200, json=GROUPS)).launcher.machines()


@pytest.mark.parametrize("answer", [httpx.Response(500), httpx.Response(200, json={"data": None})])
def test_nodes_are_known_where_ray_does_not_tell_what_is_in_use(answer: httpx.Response) -> None:
    machines = Ray(httpx.Response(200, json=NODES), answer).launcher.machines()
    assert machines == (Machine("a", "a", 2, 0), Machine("b", "10.0.0.2", 8, 4))


def test_machines_that_are_about_to_go_take_nothing_new() -> None:
    machines = (Machine("stays", "10.0.0.1", 2, 0), Machine("goes", "10.0.0.2", 8, 4))
    assert usable(machines, {"goes", "gone"}) == (Node(2, 0),)


def test_the_command_is_a_constant_and_its_interpreter_is_quoted() -> None:
    assert entrypoint("train", "/usr/bin/python3") == "/usr/bin/python3 -P -m segfleet_jobs.train"
    odd = "/opt/my env/$(touch x)/python"
    assert shlex.split(entrypoint("prepare", odd)) == [odd, "-P", "-m", "segfleet_jobs.prepare"]


def test_what_ray_says_is_cleaned_of_what_no_database_takes() -> None:
    body = b'{"status": "FAILED", "message": "a\\u0000b\\ud800c"}'
    assert Ray(httpx.Response(200, content=body)).launcher.status("job-aaaaaaaa-a1") == RayJobStatus(
        RayState.FAILED, "ab?c"
    )
    with pytest.raises(SubmissionRefusedError) as caught:
        submit(Ray(httpx.Response(400, text="Error: a\0b")))
    assert str(caught.value).endswith("Error: ab")


@pytest.mark.parametrize("status", [200, 404, 500])
def test_a_head_that_lets_strangers_in_is_not_used(status: int) -> None:
    ray = Ray(*[httpx.Response(200, json={"session_name": "s1"}) for _ in range(3)])
    ray.to_strangers = status
    for _ in range(2):
        with pytest.raises(ClusterUnreachableError, match="does not refuse who has no token"):
            ray.launcher.session()
    ray.to_strangers = 403
    assert ray.launcher.session() == "s1"


def test_each_new_head_is_asked_once_whether_it_is_closed() -> None:
    ray = Ray(*[httpx.Response(200, json={"session_name": name}) for name in ("s1", "s1", "s2")])
    assert ray.launcher.session() == "s1"
    ray.to_strangers = 200
    assert ray.launcher.session() == "s1"
    with pytest.raises(ClusterUnreachableError):
        ray.launcher.session()
