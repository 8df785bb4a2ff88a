"""The attempt's calls: patience with an absent service, obedience to a fence, secrets kept."""

from __future__ import annotations

import json
import logging
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from segfleet.errors import AttemptFencedError, LaunchError, ServiceError
from segfleet_jobs import service_call as calls
from segfleet_jobs.attempt import AttemptClient, Credentials, Heart, claim

Answer = tuple[int, dict[str, object]]


@contextmanager
def service(answer: Callable[[str, dict[str, object]], Answer]) -> Iterator[str]:
    """A real HTTP server whose answers the test decides."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            length = int(self.headers.get("Content-Length", 0))
            body = json.loads(self.rfile.read(length) or b"{}")
            body["token"] = self.headers.get("Authorization")
            status, document = answer(self.path, body)
            payload = json.dumps(document).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(payload)))
            self.end_headers()
            self.wfile.write(payload)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def client(url: str) -> AttemptClient:
    return AttemptClient(Credentials(url, "job-x-a1", "secret"))


def test_claim_trades_the_code_for_the_token() -> None:
    asked = []

    def answer(path: str, body: dict[str, object]) -> Answer:
        asked.append((path, body["code"]))
        return 200, {
            "token": "t0k3n",
            "job_id": "job-x",
            "spec": {"kind": "train"},
            "storage": "/s",
            "workers": 3,
            "earlier": None,
            "mlflow": {},
        }

    with service(answer) as url:
        grant = claim({"SEGFLEET_URL": url, "SEGFLEET_ATTEMPT": "job-x-a1", "SEGFLEET_CODE": "c0de"})
    assert asked == [("/api/v1/attempts/job-x-a1/claim", "c0de")]
    assert (grant.job_id, grant.credentials.token, grant.storage) == ("job-x", "t0k3n", "/s")
    assert "t0k3n" not in repr(grant)


def test_the_login_for_mlflow_comes_with_the_token_and_is_shown_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"):
        monkeypatch.setenv(name, "to be restored")
    login = {"MLFLOW_TRACKING_USERNAME": "jobs", "MLFLOW_TRACKING_PASSWORD": "h0rse"}
    credentials = Credentials("http://127.0.0.1:9", "job-x-a1", "secret", login)
    assert "h0rse" not in repr(credentials)
    AttemptClient(credentials).close()
    assert {name: os.environ[name] for name in login} == login


def test_a_driver_started_by_hand_is_told_how_to_submit() -> None:
    with pytest.raises(LaunchError, match="segfleet submit"):
        claim({"SEGFLEET_URL": "http://127.0.0.1:1"})


def test_calls_wait_out_a_service_that_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls.time, "sleep", lambda _: None)
    answers = iter([(503, {"message": "starting"}), (500, {}), (200, {"ok": True})])
    with service(lambda *_: next(answers)) as url:
        client(url).complete({"step": 1})
    assert next(answers, None) is None


@pytest.mark.parametrize("status", [401, 403, 404, 409])
def test_a_fenced_attempt_is_told_at_once(status: int) -> None:
    with (
        service(lambda *_: (status, {"code": "attempt_fenced", "message": "job-x has moved on"})) as url,
        pytest.raises(AttemptFencedError, match="moved on"),
    ):
        client(url).set_checkpoint({"step": 1})


def test_a_refused_request_is_no_fence() -> None:
    with (
        service(lambda *_: (422, {"message": "step must be a number"})) as url,
        pytest.raises(ServiceError, match="step must be a number"),
    ):
        client(url).set_checkpoint({"step": "x"})


def test_a_heartbeat_does_not_wait_for_an_absent_service() -> None:
    with pytest.raises(ServiceError, match="did not answer"):
        client("http://127.0.0.1:9").heartbeat(None)


def test_the_heart_tells_the_latest_progress_and_ends_on_cancel() -> None:
    told, ended = [], threading.Event()
    reasons = []

    def answer(_: str, body: dict[str, object]) -> Answer:
        told.append(body["progress"])
        return 200, {"command": "cancel" if len(told) == 3 else "continue"}

    def on_end(reason: str) -> None:
        reasons.append(reason)
        ended.set()

    with service(answer) as url:
        heart = Heart(client(url), on_end, interval_s=0.01)
        heart.progress({"step": 1})
        heart.progress({"step": 2})
        with heart:
            assert ended.wait(5)
    assert reasons == ["cancel"]
    assert told[0] == {"step": 2}


def test_a_loss_that_is_not_finite_is_told_as_null_and_stops_no_heart() -> None:
    told, ended = [], threading.Event()

    def answer(_: str, body: dict[str, object]) -> Answer:
        told.append(body["progress"])
        return 200, {"command": "continue"}

    with service(answer) as url, Heart(client(url), lambda _: ended.set(), interval_s=0.01) as heart:
        heart.progress({"loss": float("nan"), "time": [float("inf"), 1.0]})
        while len(told) < 5:
            assert not ended.wait(0.01)
    assert {"loss": None, "time": [None, 1.0]} in told


def test_the_heart_survives_what_nobody_foresaw(monkeypatch: pytest.MonkeyPatch) -> None:
    beats, enough = [], threading.Event()

    def heartbeat(_: object) -> str:
        beats.append(1)
        if len(beats) == 3:
            enough.set()
        raise LookupError("unforeseen")

    attempt = client("http://127.0.0.1:9")
    monkeypatch.setattr(attempt, "heartbeat", heartbeat)
    with Heart(attempt, lambda _: None, interval_s=0.01):
        assert enough.wait(5)


def test_the_heart_ends_when_fenced_and_goes_on_when_the_service_is_away() -> None:
    answers = iter([(500, {}), (500, {}), (409, {"message": "another attempt holds the job"})])
    ended = threading.Event()
    reasons = []

    def on_end(reason: str) -> None:
        reasons.append(reason)
        ended.set()

    with service(lambda *_: next(answers)) as url, Heart(client(url), on_end, interval_s=0.01):
        assert ended.wait(5)
    assert "another attempt holds the job" in reasons[0]


def test_a_heart_asked_to_make_room_says_so_and_goes_on() -> None:
    told = []

    def answer(_: str, body: dict[str, object]) -> Answer:
        told.append(body)
        return 200, {"command": "preempt" if len(told) == 2 else "continue"}

    ended = threading.Event()
    with service(answer) as url, Heart(client(url), lambda _: ended.set(), interval_s=0.01) as heart:
        before = heart.must_yield
        while len(told) < 5:
            assert not ended.wait(0.01)
        assert (before, heart.must_yield) == (False, True)


def test_heartbeats_leave_no_lines_in_a_log_that_takes_everybodys_info(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    logging.getLogger("httpx").setLevel(logging.NOTSET)
    with service(lambda _path, _body: (200, {"command": "continue"})) as url:
        client = AttemptClient(Credentials(url, "job-aaaaaaaa-a1", "token"))
        assert client.heartbeat(None) == "continue"
        client.close()
    assert caplog.text == ""
