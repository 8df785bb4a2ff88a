from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import httpx
import pytest

import segfleet
from segfleet.client import Client
from segfleet.connection import Connection
from segfleet.errors import (
    IdempotencyConflictError,
    IllegalTransitionError,
    ModelError,
    QuotaExceededError,
    ServiceError,
    SettingsError,
    SpecError,
    UnauthorizedError,
    UnknownJobError,
)
from serving import URL, AppTransport, Service, make_shards, prepare_spec


def test_the_package_offers_the_client_without_paying_for_it() -> None:
    assert segfleet.Client is Client
    with pytest.raises(AttributeError):
        _ = segfleet.nothing
    code = "import segfleet.errors, sys; print('httpx' in sys.modules, 'fastapi' in sys.modules)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.split() == ["False", "False"]


def test_the_verbs(client: Client, service: Service) -> None:
    assert client.check(prepare_spec())["needs"] == {"workers": 1, "cpus": 1, "gpus": 0}
    job = client.submit(prepare_spec())
    assert (job["state"], job["replayed"]) == ("queued", False)
    assert [listed["id"] for listed in client.jobs(state="queued", project="default")] == [job["id"]]
    assert client.job(job["id"])["spec"]["kind"] == "prepare"
    assert client.cancel(job["id"])["state"] == "cancelled"
    assert client.wait(job["id"])["state"] == "cancelled"
    assert client.retry(job["id"], from_start=True)["state"] == "queued"
    assert [event["kind"] for event in client.events(job["id"])][-1] == "retry_requested"
    assert client.models()[0]["name"] == "seg"
    assert client.model("seg")["versions"][0] == client.model("seg@best") == client.model("seg/1")
    assert client.status()["jobs"] == {"queued": 1}


def test_pausing_priorities_and_rules(client: Client) -> None:
    job = client.submit(prepare_spec())
    assert client.pause(job["id"])["state"] == "paused"
    assert client.resume(job["id"])["state"] == "queued"
    assert client.set_priority(job["id"], 80)["priority"] == 80
    assert client.resume(job["id"])["state"] == "queued", "asked again it changes nothing"
    other = client.submit(prepare_spec(name="other"))
    client.cancel(other["id"])
    with pytest.raises(IllegalTransitionError, match="resume"):
        client.resume(other["id"])
    rules = {"max_queued": 1, "weight": 2.0}
    assert client.set_policy("project", "default", rules) == {"scope": "project", "name": "default", "rules": rules}
    assert [policy["rules"] for policy in client.policies()] == [rules]
    with pytest.raises(QuotaExceededError, match="project 'default' has 1 waiting jobs, its quota is 1"):
        client.submit(prepare_spec())
    with pytest.raises(SpecError, match="worker"):
        client.set_policy("project", "default", {"worker": 1})


def test_errors_arrive_as_what_they_were(client: Client) -> None:
    with pytest.raises(SpecError) as spec_error:
        client.submit(prepare_spec(samplez=3, seed=-1))
    assert {problem.path for problem in spec_error.value.problems} == {"samplez", "seed"}
    with pytest.raises(UnknownJobError) as unknown:
        client.job("job-aaaaaaaa")
    assert unknown.value.job_id == "job-aaaaaaaa"
    job = client.submit(prepare_spec(), key="k")
    with pytest.raises(IdempotencyConflictError):
        client.submit(prepare_spec(name="other"), key="k")
    with pytest.raises(IllegalTransitionError, match="it is queued"):
        client.retry(job["id"])
    with pytest.raises(ModelError):
        client.model("nothing")
    for odd in ("seg@", "seg@a@b", "seg/1/2", "/1", "seg/x"):
        with pytest.raises(ModelError, match="NAME@ALIAS"):
            client.model(odd)


def test_a_wrong_token_says_what_to_do(transport: AppTransport) -> None:
    with pytest.raises(UnauthorizedError, match="home folder's file 'token'"):
        Client(URL, "wrong", transport=transport).jobs()


def test_a_submission_whose_answer_is_lost_makes_one_job(client: Client, transport: AppTransport) -> None:
    transport.lost_answers = 1
    job = client.submit(prepare_spec())
    assert job["replayed"]
    assert [listed["id"] for listed in client.jobs()] == [job["id"]]


def test_a_retry_whose_answer_is_lost_is_not_sent_again(client: Client, transport: AppTransport) -> None:
    job = client.submit(prepare_spec())
    client.cancel(job["id"])
    transport.lost_answers, before = 1, transport.requests
    with pytest.raises(ServiceError, match="does not answer"):
        client.retry(job["id"])
    assert transport.requests == before + 1


def test_relative_paths_are_the_callers(client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    spec = {"kind": "train", "name": "t", "data": {"shards": "shards"}, "model": {"pretrained": "w.safetensors"}}
    written = json.dumps(spec)
    make_shards(tmp_path / "shards")
    (tmp_path / "w.safetensors").touch()
    resolved = client.check(spec)["spec"]
    assert resolved["data"]["shards"] == str(tmp_path / "shards")
    assert resolved["model"]["pretrained"] == str(tmp_path / "w.safetensors")
    assert json.dumps(spec) == written
    assert client.check({**spec, "model": {"pretrained": False}})["spec"]["model"]["pretrained"] is False
    assert client.check(prepare_spec(out="file:///a/b"))["spec"]["out"] == "file:///a/b"
    with pytest.raises(SpecError):
        client.check({**spec, "data": "shards"})


def test_a_spec_file_is_read(client: Client, tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_text("kind: prepare\nname: shapes\ndataset: synthetic\nout: /data/shapes\n")
    assert client.submit(path)["name"] == "shapes"
    path.write_text("kind: prepare\nkind: train\n")
    with pytest.raises(SpecError, match="duplicate key"):
        client.submit(str(path))


def test_waiting_ends_in_time(client: Client) -> None:
    job = client.submit(prepare_spec())
    with pytest.raises(ServiceError, match="still queued"):
        client.wait(job["id"], timeout_s=0.0)


def test_logs_are_whole_whatever_their_encoding(client: Client, service: Service) -> None:
    job_id, attempt_id, _ = service.running()
    (service.home.logs / f"{attempt_id}.log").write_bytes("größe ".encode() * 300_000 + b"\xff\xc3")
    text = "".join(client.logs(job_id))
    assert text == f"===== {attempt_id} =====\n" + "größe " * 300_000 + "\ufffd\ufffd"


def test_following_a_log_ends_when_it_is_complete(client: Client, service: Service) -> None:
    job_id, attempt_id, bearer = service.running()
    log = service.home.logs / f"{attempt_id}.log"
    log.write_text("one\n")
    pieces = []
    for piece in client.logs(job_id, follow=True):
        pieces.append(piece)
        if "one" in piece:
            log.write_text("one\ntwo\n")
            done = {"json": {"result": {}}, "headers": bearer}
            service.http.post(f"/api/v1/attempts/{attempt_id}/complete", **done)
            with service.queue.store.write() as tx:
                tx.change_attempt(attempt_id, {"closed": True})
    assert "".join(pieces).endswith("one\ntwo\n")


def test_jobs_come_page_by_page_and_new_ones_shift_none(
    client: Client, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("segfleet.connection.PAGE", 2)
    names = [f"job-{i}" for i in range(5)]
    for name in names:
        service.submit(name=name)
    assert [job["name"] for job in client.jobs(limit=None)] == names[::-1]
    assert [job["name"] for job in client.jobs(limit=3)] == names[:1:-1]
    assert [job["name"] for job in client.jobs(limit=None, name="b-3", state=["queued", "running"])] == ["job-3"]
    assert client.jobs(state="running") == client.jobs(owner="nobody") == client.jobs(kind="train") == []
    first = service.http.get("/api/v1/jobs", params={"limit": 2}, headers=service.bearer).json()
    service.submit(name="new")
    rest = service.http.get("/api/v1/jobs", params={"before": first["next"]}, headers=service.bearer).json()
    assert [job["name"] for job in rest["jobs"]] == names[2::-1]
    assert rest["next"] is None


def test_pull_makes_a_folder_or_nothing(client: Client, service: Service, tmp_path: Path) -> None:
    out = client.pull("seg@best", tmp_path / "deep" / "model")
    found = {path.relative_to(out).as_posix(): path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert service.registry.files.items() <= found.items()
    assert {"README.md"} < found.keys() - service.registry.files.keys()  # the card, and its pictures
    with pytest.raises(ModelError, match="exists already"):
        client.pull("seg/1", out)
    with pytest.raises(ModelError):
        client.pull("seg/3", tmp_path / "other")
    assert not (tmp_path / "other").exists()
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["model"]


def test_without_a_service_the_client_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SEGFLEET_URL", "SEGFLEET_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SEGFLEET_HOME", str(tmp_path))
    with pytest.raises(SettingsError, match="segfleet up"):
        Client()
    (tmp_path / "state.json").write_text('{"url": "http://127.0.0.1:1"}')
    (tmp_path / "token").write_text("a-token-of-the-test\n")
    (tmp_path / "token").chmod(0o644)
    with pytest.raises(SettingsError, match="readable by others"):
        Client()
    (tmp_path / "token").chmod(0o600)
    with Client(patience_s=0.0) as client:
        assert client.url == "http://127.0.0.1:1"
        with pytest.raises(ServiceError, match="does not answer"):
            client.jobs()


def test_a_given_address_and_a_token_in_the_environment_need_no_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SEGFLEET_HOME", str(tmp_path / "nowhere"))
    monkeypatch.setenv("SEGFLEET_TOKEN", "a-token-of-the-test")
    with Client("http://far.example:1") as client:
        assert client.url == "http://far.example:1"
    monkeypatch.setenv("SEGFLEET_TOKEN", "nächt")
    with pytest.raises(SettingsError, match="SEGFLEET_TOKEN"):
        Client("http://far.example:1")
    for url in ("http://[::1", "http://a\x01b", "nonsense"):
        with pytest.raises(SettingsError, match="no address of a service"):
            Client(url, "t")


@pytest.mark.parametrize("key", ["", "nächt", "a b", "x" * 201])
def test_a_key_that_cannot_be_one_is_refused_here(client: Client, service: Service, key: str) -> None:
    with pytest.raises(SettingsError, match="visible ASCII"):
        client.submit(prepare_spec(), key=key)
    assert service.queue.list() == ()


@pytest.mark.parametrize("answer", [{"text": "<html>hello</html>"}, {"json": {}}, {"json": [1]}, {"json": {"jobs": 1}}])
def test_another_server_at_the_address_is_told(answer: Any) -> None:
    with Client(URL, "t", transport=httpx.MockTransport(lambda _: httpx.Response(200, **answer))) as client:
        for ask in (client.jobs, client.models, lambda: list(client.logs("job-aaaaaaaa"))):
            with pytest.raises(ServiceError):
                ask()


def test_an_answer_that_cannot_be_decoded_is_a_service_error() -> None:
    garbled = httpx.MockTransport(
        lambda _: httpx.Response(200, headers={"Content-Encoding": "gzip"}, stream=httpx.ByteStream(b"no gzip"))
    )
    with Client(URL, "t", transport=garbled, patience_s=0.0) as client, pytest.raises(ServiceError):
        client.jobs()


class Clock:
    """Time that passes only while somebody sleeps."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def connection(answers: list[Any], patience_s: float, clock: Clock) -> Connection:
    """A connection to a service that gives these answers, the last one for ever."""

    def answer(request: httpx.Request) -> httpx.Response:
        given = answers.pop(0) if len(answers) > 1 else answers[0]
        if isinstance(given, Exception):
            raise given
        return httpx.Response(given[0], json=given[1])

    return Connection(
        URL, None, patience_s=patience_s, transport=httpx.MockTransport(answer), sleep=clock.sleep, clock=clock
    )


def test_a_service_that_comes_back_is_waited_for() -> None:
    clock = Clock()
    refused = httpx.ConnectError("refused")
    answers: list[Any] = [refused, refused, (503, {"code": "queue_unavailable", "message": "busy"}), (200, {"a": 1})]
    assert connection(answers, 10.0, clock).get("/x") == {"a": 1}
    assert 0 < clock.now < 10


def test_patience_ends() -> None:
    clock = Clock()
    with pytest.raises(ServiceError, match="does not answer"):
        connection([httpx.ConnectError("refused")], 10.0, clock).get("/x")
    assert 5 < clock.now <= 10
    with pytest.raises(ServiceError, match="busy"):
        connection([(503, {"code": "service", "message": "busy", "args": ["busy"]})], 1.0, clock).get("/x")
    clock.now = 0.0
    with pytest.raises(ServiceError):
        connection([httpx.ReadTimeout("slow")], 10.0, clock).get("/x", patience_s=0.0)
    assert clock.now == 0.0


@pytest.mark.parametrize(
    "body",
    ["text", [], {}, {"message": 3}, {"code": "spec_invalid", "message": "m"}, {"code": "unknown_job", "message": "m"}],
)
def test_an_unreadable_refusal_is_a_service_error(body: Any) -> None:
    with pytest.raises(ServiceError):
        connection([(422, body)], 0.0, Clock()).get("/x")


def test_what_json_cannot_say_is_sent_as_null() -> None:
    seen: list[Any] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(json.loads(request.content))
        return httpx.Response(200, json={})

    link = Connection(URL, None, patience_s=0.0, transport=httpx.MockTransport(answer))
    link.post("/x", {"loss": float("nan"), "list": [float("inf"), 1.5], "deep": {"x": float("-inf")}})
    assert seen == [{"loss": None, "list": [None, 1.5], "deep": {"x": None}}]


def test_the_token_stays_away_from_proxies_and_netrc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://proxy.invalid:1")
    monkeypatch.setenv("ALL_PROXY", "http://proxy.invalid:1")
    got: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            peer, _ = server.accept()
            with peer:
                got.append(peer.recv(65536))
                peer.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Type: application/json\r\n\r\n{}")

        threading.Thread(target=serve, daemon=True).start()
        link = Connection(f"http://127.0.0.1:{server.getsockname()[1]}", "secret", patience_s=0.0)
        assert link.get("/x") == {}
        link.close()
    assert b"Bearer secret" in got[0]


def test_every_list_comes_page_by_page(client: Client, service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("segfleet.connection.PAGE", 2)
    job_id = service.submit()["id"]
    for priority in (60, 70, 80, 90):
        client.set_priority(job_id, priority)
    seqs = [event["seq"] for event in client.events(job_id)]
    assert len(seqs) == 5
    assert seqs == sorted(set(seqs))
    made = client.create_webhook("https://hooks.example.org/x", ["succeeded"])
    tried = [client.test_webhook(made["id"]) for _ in range(5)]
    assert [row["id"] for row in client.deliveries(made["id"], limit=None)] == tried[::-1]
    assert [row["id"] for row in client.deliveries(made["id"], limit=3)] == tried[:1:-1]
    asked = [client.promote("seg/2" if number % 2 else "seg/1", "other")["id"] for number in range(5)]
    assert [one["id"] for one in client.promotions("seg", limit=None)] == asked[::-1]
    assert [one["id"] for one in client.promotions("seg", limit=3)] == asked[:1:-1]
