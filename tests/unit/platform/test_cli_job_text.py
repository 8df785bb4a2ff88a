"""Specs and jobs in words."""

from __future__ import annotations

import time
from typing import Any

import pytest

from segfleet.cli.job_text import plan_of, print_job, print_outcome
from segfleet.spec.resolve import resolve_spec, to_document


def plan(**spec: Any) -> str:
    return plan_of(to_document(resolve_spec({"name": "x", **spec})))


def test_a_plan_says_what_is_done_and_by_how_many() -> None:
    evaluate = {"kind": "evaluate", "model": "road@best", "data": {"shards": "/data/road"}}
    assert plan(**evaluate) == (
        "evaluate road@best on /data/road, val, as the model was validated, fp32; 1 worker with 1 CPU and 0 GPU each"
    )
    windows = {"window": 64, "stride": 48, "scales": [0.5, 1.0], "flip": True}
    many = plan(**evaluate, eval=windows, precision="bf16", resources={"workers": 3})
    assert many.endswith("val, 2 scale(s) and flip, bf16; 3 workers with 1 CPU and 0 GPU each")
    train = plan(kind="train", recipe="camvid", data={"shards": "/data/road"})
    assert train == "4000 steps of 8 samples at 336 pixels in fp32; 1 worker with 1 CPU and 0 GPU each"
    assert plan(kind="prepare", dataset="synthetic", out="/data/x") == "prepare synthetic into /data/x"


def test_an_evaluation_ends_with_what_was_scored_on_what(capsys: pytest.CaptureFixture[str]) -> None:
    result = {"miou": 0.51234, "model_version": "road/3", "dataset": "camvid", "split": "test"}
    print_outcome({"id": "job-aaaaaaaa", "kind": "evaluate", "state": "succeeded", "result": result})
    said = capsys.readouterr()
    assert "job-aaaaaaaa succeeded, mIoU 0.5123: road/3 on camvid, test" in said.out + said.err
    assert "registered" not in said.out + said.err


def shown(capsys: pytest.CaptureFixture[str], **changes: Any) -> str:
    job = {
        "id": "job-aaaaaaaa",
        "name": "shapes",
        "kind": "train",
        "project": "default",
        "priority": 50,
        "state": "running",
        "place": None,
        "starts_at": None,
        "start_by": None,
        "reason": "",
        "needs": {"workers": 2, "cpus": 2, "gpus": 0, "max_workers": 8},
        "started_at": 1.0,
        "finished_at": None,
        "progress": None,
        "attempts": [{"id": "job-aaaaaaaa-a1", "state": "running", "workers": 3, "failure": None}],
        "faults": [],
        "goodput": None,
    }
    print_job({**job, **changes})
    return " ".join(capsys.readouterr().out.split())


def test_an_elastic_job_says_how_many_workers_it_has(capsys: pytest.CaptureFixture[str]) -> None:
    assert "runs with 3 of 2-8 workers" in shown(capsys)
    assert "workers" not in shown(capsys, needs={"workers": 2, "cpus": 2, "gpus": 0})
    assert "workers" not in shown(capsys, state="queued", attempts=[])


def test_a_job_that_waits_says_when_it_gives_up(capsys: pytest.CaptureFixture[str]) -> None:
    waiting = {"state": "queued", "started_at": None, "attempts": [], "start_by": time.time() + 3600 * 5 + 30}
    assert "fails if it has not started in 5h 00m" in shown(capsys, **waiting)
    assert "fails if" not in shown(capsys, **waiting | {"start_by": None})


def test_a_reused_preparation_says_from_whom(capsys: pytest.CaptureFixture[str]) -> None:
    result = {"content_id": "c", "reused_from": "job-bbbbbbbb"}
    print_outcome({"id": "job-aaaaaaaa", "kind": "prepare", "state": "succeeded", "result": result})
    assert "succeeded, reused from job-bbbbbbbb" in " ".join(capsys.readouterr().out.split())


def test_progress_says_what_the_job_is_at(capsys: pytest.CaptureFixture[str]) -> None:
    progress = {"phase": "measuring models", "step": 3, "num_steps": 6, "eta_s": None, "miou": 0.5}
    assert "measuring models, step 3/6, mIoU 0.5 " in shown(capsys, progress=progress)
    assert "checking data" in shown(capsys, progress={"phase": "checking data"})
    assert "step 3/6, left 1m 30s" in shown(capsys, progress={"step": 3, "num_steps": 6, "eta_s": 90.0})
    ended = shown(capsys, progress=progress | {"eta_s": 1.0}, finished_at=2.0)
    assert "measuring" not in ended
    assert "left" not in ended
