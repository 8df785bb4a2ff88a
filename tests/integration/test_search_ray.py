"""Searches on a real Ray head, with the real service: to their end, through kills, and back from where they were."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from search_stage import Stage, stage, tiny_search, wait_for
from training import make_dataset

pytestmark = [
    pytest.mark.integration,
    pytest.mark.timeout(900),
    # MLflow's own code on current libraries.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
ENDED = {"succeeded", "stopped", "failed"}


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_dataset(tmp_path_factory.mktemp("boxes"))


@pytest.fixture(scope="module")
def ray_stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    with stage(tmp_path_factory.mktemp("stage")) as made:
        yield made


def states(trials: list[dict[str, Any]]) -> dict[int, str]:
    return {trial["number"]: trial["state"] for trial in trials}


def test_a_grid_with_asha_survives_the_kill_of_its_driver_and_ends_in_a_model(ray_stage: Stage, shards: str) -> None:
    # Whoever comes after a better one is ended.
    space = {"optim.lr": [0.003, 0.00001]}
    search = {"scheduler": "asha", "reduction": 2, "max_parallel": 2}
    document = tiny_search(shards, space, search, final={"steps": 2}, register={"model": "seg"}, train={"steps": 4})
    job = ray_stage.submit(document)
    first = ray_stage.start(job, workers=1)
    wait_for(lambda: _is_second_half_done(ray_stage, job) or first.poll() is not None, 300)
    assert first.poll() is None, ray_stage.log(job)
    before = ray_stage.trials(job)
    ray_stage.kill(job, first)
    wait_for(lambda: not ray_stage.members(), 60)
    second = ray_stage.start(job, workers=1)
    assert second.wait(timeout=400) == 0, ray_stage.log(job)
    trials, result = ray_stage.trials(job), ray_stage.job(job)["result"]
    assert [trial["kind"] for trial in trials] == ["trial"] * 2 + ["final"]
    assert set(states(trials).values()) <= {"succeeded", "stopped"}
    assert trials[0] == {**before[0], **_measured(trials[0])}, "what had ended was run again"
    assert all(len({r["validation"] for r in trial["reports"]}) == len(trial["reports"]) for trial in trials)
    for trial in trials:
        if trial["state"] == "stopped":
            assert "ended by asha" in trial["why"]
        else:
            assert trial["step"] == trial["num_steps"]
        assert trial["parameters"] > 1000
        assert trial["images_per_s"] > 0
        assert trial["worker_seconds"] > 0
    best = max(trials[:2], key=lambda trial: (trial["best_value"], -trial["number"]))
    assert (result["best_trial"], result["trial"]) == (best["number"], 3)
    assert result["why"] == "all 2 trials are done"
    registered = ray_stage.service.registry.registered[-1]
    assert registered.tags["segfleet.parent_trial"] == str(best["number"])
    _check_runs(ray_stage, job, result, trials)
    token = ray_stage.environment["RAY_AUTH_TOKEN"]
    assert token not in json.dumps(trials)
    assert not ray_stage.members(), "workers are left"
    _check_log(ray_stage.log(job))


def _check_log(log: str) -> None:
    """One line of ours for each trial that begins or ends, none of Tune's tables."""
    assert "segfleet: trial 1 of 2 begins: optim.lr=0.003" in log
    assert "segfleet: trial 2 of 2 goes on from step" in log
    assert "Number of trials" not in log
    assert "Configuration for experiment" not in log
    assert "Logical resource usage" not in log


def _is_second_half_done(made: Stage, job: str) -> bool:
    trials = made.trials(job)
    return len(trials) > 1 and trials[1]["checkpoint"] is not None


def _measured(trial: dict[str, Any]) -> dict[str, Any]:
    return {name: trial[name] for name in ("parameters", "images_per_s", "peak_memory_mib", "updated_at")}


def _check_runs(made: Stage, job: str, result: dict[str, Any], trials: list[dict[str, Any]]) -> None:
    client, runs = MlflowClient(made.environment["MLFLOW_TRACKING_URI"]), made.runs(job)
    assert len(runs) == len(trials), "one run a trial, over both attempts"
    assert {run.data.tags["mlflow.parentRunId"] for run in runs} == {result["mlflow_run"]}
    assert {run.info.run_id for run in runs} == {trial["mlflow_run"] for trial in trials}
    assert {run.info.status for run in runs} == {"FINISHED"}
    assert client.get_run(result["mlflow_run"]).info.status == "FINISHED"


def test_trials_of_two_workers_run_one_by_one_make_room_go_on_and_are_cancelled(ray_stage: Stage, shards: str) -> None:
    train = {"steps": 1000, "validate_every": 1000, "checkpoint_every": 2}
    space = {"optim.lr": [0.001, 0.002]}
    document = tiny_search(shards, space, {"max_parallel": 2}, train=train, resources={"workers": 2})
    job = ray_stage.submit(document)
    first = ray_stage.start(job, workers=2)
    wait_for(lambda: _has_checkpoint(ray_stage, job) or first.poll() is not None, 300)
    assert states(ray_stage.trials(job)) == {1: "running"}, "trials of two workers run side by side on two CPUs"
    ray_stage.ask_to_yield(job)
    assert first.wait(timeout=120) == 0, ray_stage.log(job)
    assert ray_stage.job(job)["state"] == "queued"
    [held] = ray_stage.trials(job)
    assert held["state"] == "running"
    assert 0 < held["checkpoint"]["step"] == held["step"] < 1000
    second = ray_stage.start(job, workers=2)
    wait_for(lambda: ray_stage.trials(job)[0]["step"] > held["step"] or second.poll() is not None, 300)
    assert f"segfleet: trial 1 of 2 goes on from step {held['step']}" in ray_stage.log(job)
    # Its driver, its controller and its two workers.
    assert len(ray_stage.members()) >= 4
    ray_stage.service.http.post(f"/api/v1/jobs/{job}/cancel", json={}, headers=ray_stage.service.bearer)
    assert second.wait(timeout=60) == 3, "whoever is told to end says so with its exit code"
    wait_for(lambda: not ray_stage.members(), 60)
    [cancelled] = ray_stage.trials(job)
    assert (cancelled["attempt"], cancelled["state"], cancelled["why"]) == (2, "running", "")
    folder = Path(cancelled["checkpoint"]["path"])
    assert (folder / "meta.json").is_file(), "a retry takes it up there"
    assert len(ray_stage.runs(job)) == 1


def _has_checkpoint(made: Stage, job: str) -> bool:
    return any(trial["checkpoint"] is not None for trial in made.trials(job))
