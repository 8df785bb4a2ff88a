"""The account of a job's time and its workers' faults, from heartbeats to what people and Prometheus see."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from segfleet.cli.job_text import print_job
from segfleet.cli.time_text import fault_lines, time_lines
from segfleet.queue.desk import MAX_FAULTS
from segfleet.queue.goodput import PARTS
from segfleet.queue.tables import goodput
from serving import Service
from world import World


def account(elapsed: float, step: float, start: int = 0, life: str = "one") -> dict[str, Any]:
    seconds = {"load": elapsed - step, "step": step}
    steps = {"start": start, "step": start + 3, "saved": start + 1}
    return {"life": life, "elapsed": elapsed, "part": "step", "seconds": seconds, "unsaved": {"step": 1.0}, **steps}


def post(service: Service, attempt_id: str, verb: str, bearer: dict[str, str], body: dict[str, Any]) -> int:
    return service.http.post(f"/api/v1/attempts/{attempt_id}/{verb}", json=body, headers=bearer).status_code


def shown(service: Service, job_id: str) -> dict[str, Any]:
    answer = service.http.get(f"/api/v1/jobs/{job_id}", headers=service.bearer)
    assert answer.status_code == 200
    return dict(answer.json())


def test_a_job_shows_its_split_and_its_faults(service: Service, capsys: pytest.CaptureFixture[str]) -> None:
    job_id, attempt_id, bearer = service.running()
    told = {"phase": "train", "step": 3, "num_steps": 9, "account": account(0.5, 0.25)}
    assert post(service, attempt_id, "heartbeat", bearer, {"progress": told}) == 200
    fault = {"kind": "fault", "rank": 1, "phase": "forward", "step": 3, "message": "rank 1 failed in forward"}
    assert post(service, attempt_id, "fault", bearer, fault) == 200
    job = shown(service, job_id)
    assert "account" not in job["progress"]
    assert job["faults"][0] | fault == job["faults"][0]
    assert sum(job["goodput"]["seconds"].values()) == pytest.approx(job["goodput"]["wall_s"], abs=0.01)
    print_job(job)
    out = capsys.readouterr().out
    assert "rank 1 failed in forward" in out
    assert "goodput" in out


def test_a_fault_needs_the_attempts_token_and_a_known_kind(service: Service) -> None:
    _, attempt_id, bearer = service.running()
    fault = {"kind": "fault", "rank": None, "phase": None, "step": None, "message": "x"}
    assert post(service, attempt_id, "fault", {"Authorization": "Bearer wrong"}, fault) in (401, 403, 409)
    assert post(service, attempt_id, "fault", bearer, {**fault, "kind": "boredom"}) == 422
    assert post(service, attempt_id, "fault", bearer, {**fault, "rank": -1}) == 422


def test_a_history_is_not_flooded_with_faults(service: Service) -> None:
    job_id, attempt_id, bearer = service.running()
    token = bearer["Authorization"].removeprefix("Bearer ")
    detail = {"rank": 0, "phase": "data", "step": 1, "message": "x"}
    for _ in range(MAX_FAULTS + 3):
        service.queue.note_fault(attempt_id, token, "straggler", detail)
    assert len(service.queue.faults(job_id, 1000)) == MAX_FAULTS
    assert len(shown(service, job_id)["faults"]) == 20


def test_what_is_no_account_costs_no_heartbeat(service: Service) -> None:
    job_id, attempt_id, bearer = service.running()
    assert post(service, attempt_id, "heartbeat", bearer, {"progress": {"step": 1, "account": {"life": 1}}}) == 200
    assert shown(service, job_id)["progress"] == {"step": 1}


def test_prometheus_sums_the_splits_of_all_jobs(service: Service) -> None:
    _, attempt_id, bearer = service.running()
    assert post(service, attempt_id, "heartbeat", bearer, {"progress": {"account": account(0.01, 0.004)}}) == 200
    text = service.http.get("/metrics", headers=service.bearer).text
    assert 'segfleet_job_seconds{part="step"} 0.0' in text
    assert post(service, attempt_id, "complete", bearer, {"result": {}}) == 200
    lines = service.http.get("/metrics", headers=service.bearer).text.splitlines()
    found = {line.split('"')[1]: float(line.split()[-1]) for line in lines if line.startswith("segfleet_job_seconds{")}
    assert set(found) == set(PARTS)
    assert found["step"] + found["load"] > 0


def test_a_lost_attempt_and_its_successor_are_one_split(tmp_path: Path, queue_url: str) -> None:
    world = World(tmp_path, queue_url)
    job = world.submit()
    world.step()
    first = world.claim(job)
    world.clock.advance(10.0)
    world.queue.heartbeat(first.attempt_id, first.token, {"account": account(10.0, 8.0)})
    world.pass_time(60.0)
    kept = world.queue.goodput(job.id)
    assert kept is not None
    assert kept.seconds["detection"] >= 25.0
    second = world.claim(world.queue.get(job.id), 2)
    world.clock.advance(5.0)
    world.queue.heartbeat(second.attempt_id, second.token, {"account": account(5.0, 4.0, start=1, life="two")})
    world.queue.complete(second.attempt_id, second.token, {})
    found = world.queue.goodput(job.id)
    assert found is not None
    ended = world.queue.get(job.id)
    assert ended.finished_at is not None
    assert ended.started_at is not None
    assert sum(found.seconds.values()) == pytest.approx(ended.finished_at - ended.started_at)
    assert found.seconds["redone"] == pytest.approx(1.0)
    assert found.seconds["step"] == pytest.approx(11.0)
    with world.queue.store.read() as tx:
        sums = tx.goodput.sums()
    assert sums == pytest.approx(found.seconds)
    assert set(goodput.columns.keys()) == {"job_id", *PARTS}


def test_bars_for_what_took_time() -> None:
    assert time_lines(None) == []
    split = {"share": 0.8, "wall_s": 100.0, "first_wait_s": 65.0, "seconds": {"step": 80.0, "data": 19.9, "load": 0.1}}
    head, step, data = time_lines(split)
    assert head == "time: goodput 80% of 1m 40s, after a wait of 1m 05s"
    assert step.split() == ["step", "1m", "20s", "80%", "#" * 24]
    assert data.split()[-2:] == ["20%", "#" * 6]
    assert fault_lines([]) == []
