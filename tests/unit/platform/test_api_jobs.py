from __future__ import annotations

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from segfleet.errors import QueueUnavailableError
from segfleet.queue.board import Board
from segfleet.queue.scheduling.values import Node, Wait
from segfleet.server.logs import read_logs
from segfleet.server.status_routes import storage_of
from serving import make_shards

JOBS = "/api/v1/jobs"


def spec(**changes: Any) -> dict[str, Any]:
    return {"kind": "prepare", "name": "shapes", "dataset": "synthetic", "out": "/data/shapes", **changes}


def train_spec(shards: str = "/data/shapes", **changes: Any) -> dict[str, Any]:
    return {"kind": "train", "name": "tiny", "data": {"shards": shards}, **changes}


def test_check_fills_in_the_defaults_and_stores_nothing(service: Any, tmp_path: Path) -> None:
    body = {"spec": train_spec(make_shards(tmp_path / "shards"), resources={"workers": 2, "cpus_per_worker": 3})}
    answer = service.http.post("/api/v1/check", json=body, headers=service.bearer)
    assert answer.status_code == 200
    assert answer.json()["needs"] == {"workers": 2, "cpus": 6, "gpus": 0}
    assert answer.json()["spec"]["optim"]["momentum"] == 0.9
    assert service.http.get(JOBS, headers=service.bearer).json() == {"jobs": [], "next": None}


def test_a_wrong_spec_is_answered_with_every_problem(service: Any) -> None:
    wrong = train_spec(optim={"lr": -1, "lrr": 1}, train={"steps": 0})
    for path in ("/api/v1/check", JOBS):
        answer = service.http.post(path, json={"spec": wrong}, headers=service.bearer)
        assert answer.status_code == 422
        document = answer.json()
        assert document["code"] == "spec_invalid"
        assert {problem["path"] for problem in document["problems"]} == {"optim.lr", "optim.lrr", "train.steps"}
    assert service.http.get(JOBS, headers=service.bearer).json() == {"jobs": [], "next": None}


@pytest.mark.parametrize(
    "value", [float("nan"), float("inf"), 2**64, "\ud800", "a\0b", {"a\ud800": 1}, [[[[["\0"]]]]]], ids=repr
)
def test_values_no_database_can_hold_are_refused(service: Any, value: Any) -> None:
    body = json.dumps({"spec": spec(name=value)})
    headers = {**service.bearer, "Content-Type": "application/json"}
    answer = service.http.post(JOBS, content=body, headers=headers)
    assert answer.status_code == 422
    assert answer.json()["code"] == "request_invalid"


def test_a_spec_larger_than_a_spec_file_may_be_is_refused(service: Any) -> None:
    answer = service.http.post(JOBS, json={"spec": spec(out="/" + "x" * 70_000)}, headers=service.bearer)
    assert answer.status_code == 422
    assert "65536" in answer.json()["message"]


def test_submit_stores_the_resolved_spec(service: Any) -> None:
    job = service.submit()
    assert (job["state"], job["name"], job["place"], job["replayed"]) == ("queued", "shapes", None, False)
    shown = service.http.get(f"{JOBS}/{job['id']}", headers=service.bearer).json()
    assert shown["spec"]["samples"] == 300
    assert shown["attempts"] == []
    assert "fence" not in shown


def test_the_same_key_gives_the_same_job(service: Any) -> None:
    headers = {**service.bearer, "Idempotency-Key": "k1"}
    first = service.http.post(JOBS, json={"spec": spec()}, headers=headers)
    again = service.http.post(JOBS, json={"spec": spec()}, headers=headers)
    assert (first.status_code, again.status_code) == (201, 200)
    assert again.json()["replayed"]
    assert again.json()["id"] == first.json()["id"]
    other = service.http.post(JOBS, json={"spec": spec(name="other")}, headers=headers)
    assert (other.status_code, other.json()["code"]) == (422, "idempotency_conflict")
    assert len(service.http.get(JOBS, headers=service.bearer).json()["jobs"]) == 1


def test_many_posts_at_once_with_one_key_make_one_job(service: Any) -> None:
    headers = {**service.bearer, "Idempotency-Key": "k1"}

    def post(_: int) -> Any:
        return service.http.post(JOBS, json={"spec": spec()}, headers=headers)

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(post, range(24)))
    assert sorted(answer.status_code for answer in answers) == [200] * 23 + [201]
    assert len({answer.json()["id"] for answer in answers}) == 1


@pytest.mark.parametrize("key", ["", "a b", "x" * 201, b"\xe9"])
def test_odd_keys_are_refused(service: Any, key: Any) -> None:
    headers = {**service.bearer, "Idempotency-Key": key}
    assert service.http.post(JOBS, json={"spec": spec()}, headers=headers).status_code == 422


def test_a_job_larger_than_the_cluster_is_refused_with_the_numbers(service: Any, tmp_path: Path) -> None:
    service.queue.board = Board(nodes=(Node(2, 0),))
    body = {"spec": train_spec(make_shards(tmp_path / "shards"), resources={"workers": 4})}
    for path in ("/api/v1/check", JOBS):
        answer = service.http.post(path, json=body, headers=service.bearer)
        assert answer.status_code == 422
        assert "4" in answer.json()["problems"][0]["message"]


def test_a_job_with_nothing_to_read_is_refused_before_it_starts(service: Any, tmp_path: Path) -> None:
    cut, whole = make_shards(tmp_path / "cut"), make_shards(tmp_path / "with space")
    Path(cut, "manifest.json").write_text('{"splits":')
    weights = tmp_path / "weights"
    specs = [
        (train_spec(str(tmp_path)), ["data.shards"]),
        (train_spec(cut, model={"pretrained": str(weights)}), ["data.shards", "model.pretrained"]),
        (spec(dataset="folder", raw=str(weights)), ["raw"]),
    ]
    for path in ("/api/v1/check", JOBS):
        for document, places in specs:
            answer = service.http.post(path, json={"spec": document}, headers=service.bearer).json()
            assert [problem["path"] for problem in answer["problems"]] == places
    hint = service.http.post(JOBS, json={"spec": specs[0][0]}, headers=service.bearer).json()["problems"][0]["hint"]
    assert "segfleet prepare" in hint
    assert service.queue.list() == ()
    weights.touch()
    for document in (
        train_spec(f"file://{whole.replace(' ', '%20')}", model={"pretrained": str(weights)}),
        train_spec(whole, model={"pretrained": False}),
        spec(dataset="folder", raw=str(tmp_path)),
    ):
        assert service.http.post(JOBS, json={"spec": document}, headers=service.bearer).status_code == 201


def test_a_waiting_job_says_why_and_where(service: Any) -> None:
    job_id = service.submit()["id"]
    service.queue.board = Board(waits={job_id: Wait(job_id, 3, "behind job-x")})
    shown = service.http.get(f"{JOBS}/{job_id}", headers=service.bearer).json()
    assert (shown["place"], shown["reason"]) == (3, "behind job-x")


@pytest.mark.parametrize("job_id", ["job-aaaaaaaa", "job-1", "x' OR 1=1 --", "..%2f..", "%2e%2e%2fetc", "%00", "%ff"])
def test_an_unknown_job_is_not_found(service: Any, job_id: str) -> None:
    for method, tail in (("GET", ""), ("GET", "/events"), ("GET", "/logs"), ("POST", "/cancel"), ("POST", "/retry")):
        body = {"json": {}} if method == "POST" else {}
        answer = service.http.request(method, f"{JOBS}/{job_id}{tail}", headers=service.bearer, **body)
        assert answer.status_code in (404, 405)


def test_jobs_are_filtered_and_bounded(service: Any) -> None:
    ids = [service.submit(name=f"n{number}")["id"] for number in range(3)]
    service.queue.cancel(ids[1], "me")

    def listed(query: str) -> list[str]:
        answer = service.http.get(f"{JOBS}?{query}", headers=service.bearer)
        assert answer.status_code == 200
        return [job["id"] for job in answer.json()["jobs"]]

    assert listed("") == ids[::-1]
    assert listed("state=queued") == [ids[2], ids[0]]
    assert listed("project=default&limit=1") == [ids[2]]
    assert listed("project=' OR 1=1 --") == []


@pytest.mark.parametrize("query", ["state=nope", "limit=0", "limit=1001", "limit=x", "limit=1e2", "limit=nan"])
def test_odd_filters_are_refused(service: Any, query: str) -> None:
    assert service.http.get(f"{JOBS}?{query}", headers=service.bearer).status_code == 422


def test_cancel_and_retry(service: Any) -> None:
    job_id = service.submit()["id"]
    early = service.http.post(f"{JOBS}/{job_id}/retry", json={}, headers=service.bearer)
    assert (early.status_code, early.json()["code"]) == (409, "illegal_transition")
    for _ in range(2):
        cancelled = service.http.post(f"{JOBS}/{job_id}/cancel", json={}, headers=service.bearer)
        assert (cancelled.status_code, cancelled.json()["state"]) == (200, "cancelled")
    again = service.http.post(f"{JOBS}/{job_id}/retry", json={"from_start": True}, headers=service.bearer)
    assert again.json()["state"] == "queued"
    events = service.http.get(f"{JOBS}/{job_id}/events", headers=service.bearer).json()["events"]
    assert [event["kind"] for event in events] == ["submitted", "cancelled", "retry_requested"]


def test_a_database_that_is_away_is_worth_another_try(service: Any) -> None:
    def locked(*_: Any) -> Any:
        raise QueueUnavailableError("the queue's database is locked")

    service.queue.list = locked
    answer = service.http.get(JOBS, headers=service.bearer)
    assert answer.status_code == 503
    assert int(answer.headers["Retry-After"]) > 0


def test_logs_of_all_attempts_in_order(service: Any) -> None:
    job_id, attempt_id, _ = service.running()
    path = f"{JOBS}/{job_id}/logs"
    title = f"===== {attempt_id} =====\n".encode()
    empty = service.http.get(path, headers=service.bearer)
    assert (empty.content, empty.headers["X-Log-End"]) == (title, "false")
    log = service.home.logs / f"{attempt_id}.log"
    log.write_bytes(b"step 1\n\xff\n")
    answer = service.http.get(f"{path}?offset={len(title)}", headers=service.bearer)
    assert answer.content == b"step 1\n\xff\n"
    assert answer.headers["X-Next-Offset"] == str(len(title) + 9)
    far = service.http.get(f"{path}?offset={10**15}", headers=service.bearer)
    assert (far.content, far.headers["X-Next-Offset"]) == (b"", str(len(title) + 9))
    for odd in ("-1", "x", str(2**63)):
        assert service.http.get(f"{path}?offset={odd}", headers=service.bearer).status_code == 422


def test_a_log_ends_only_when_it_is_complete(service: Any) -> None:
    job_id, attempt_id, bearer = service.running()
    path = f"{JOBS}/{job_id}/logs?offset=1000"
    end = f"/api/v1/attempts/{attempt_id}/complete"
    assert service.http.post(end, json={"result": {}}, headers=bearer).status_code == 200
    assert service.http.get(path, headers=service.bearer).headers["X-Log-End"] == "false"
    with service.queue.store.write() as tx:
        tx.change_attempt(attempt_id, {"closed": True})
    assert service.http.get(path, headers=service.bearer).headers["X-Log-End"] == "true"
    # A piece with something in it is never the last: only the reader's next question can be sure of that.
    assert service.http.get(f"{JOBS}/{job_id}/logs", headers=service.bearer).headers["X-Log-End"] == "false"


def test_every_way_to_cut_a_log_gives_the_same_bytes(tmp_path: Any) -> None:
    (tmp_path / "j-a1.log").write_bytes(b"first")
    (tmp_path / "j-a3.log").write_bytes(b"third\n")
    ids = ["j-a1", "j-a2", "j-a3"]
    whole, end = read_logs(tmp_path, ids, 0)
    assert whole == b"===== j-a1 =====\nfirst\n===== j-a2 =====\n\n===== j-a3 =====\nthird\n"
    assert end == len(whole)
    for limit in (1, 2, 7, 1000):
        read, offset = b"", 0
        while True:
            data, following = read_logs(tmp_path, ids, offset, limit)
            assert following == offset + len(data)
            assert len(data) <= limit
            if not data:
                break
            read, offset = read + data, following
        assert read == whole


def test_status_shows_the_parts(service: Any) -> None:
    service.submit()
    status = service.http.get("/api/v1/status", headers=service.bearer).json()
    assert status["jobs"] == {"queued": 1}
    assert status["ray"]["ok"] is False
    assert status["dispatcher"] == {"ok": True}
    assert status["database"]["kind"] == "sqlite"
    assert 0 < status["database"]["answered_in_s"] < 60
    assert 0 < status["storage"]["free_bytes"] < status["storage"]["total_bytes"]
    service.queue.board = Board(nodes=(Node(2, 0),))
    status = service.http.get("/api/v1/status", headers=service.bearer).json()
    assert status["ray"]["capacity"] == {"cpus": 2, "gpus": 0, "nodes": 1}


def test_storage_that_is_full_or_gone_is_not_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert storage_of(tmp_path / "gone").ok is False
    for total, free, ok in ((1e12, 51e9, True), (1e12, 49e9, False), (100e9, 6e9, True), (100e9, 4e9, False)):
        monkeypatch.setattr(shutil, "disk_usage", lambda _, t=total, f=free: SimpleNamespace(total=int(t), free=int(f)))
        assert storage_of(tmp_path).ok is ok
