"""The runs of a search's trials in MLflow, on SQLite: ended for processes that died, forgotten with their trials."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlflow
import pytest
from mlflow import MlflowClient

from searched import make_grant, make_search, trial
from segfleet_jobs import search as search_module
from segfleet_jobs.child_runs import forget_children, open_children
from segfleet_jobs.run_plan import Child, plan_run
from segfleet_jobs.search import _close_runs
from segfleet_jobs.tracking import open_run
from segfleet_jobs.trial import Search
from segfleet_pipelines.manifest import Manifest
from training import make_dataset

pytestmark = [
    pytest.mark.integration,
    # MLflow's own code on current libraries.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture(scope="module")
def tracking(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    folder = tmp_path_factory.mktemp("mlflow")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
        patch.chdir(folder)
        before = mlflow.get_tracking_uri()
        mlflow.set_tracking_uri(f"sqlite:///{folder / 'mlflow.db'}")
        yield
        mlflow.set_tracking_uri(before)


class Stage:
    """A search whose trials have runs."""

    def __init__(self, folder: Path) -> None:
        shards = make_dataset(folder / "boxes")
        self.spec, self.manifest = make_search(base={"data": {"shards": shards}}), Manifest.load(shards)
        self.job_id = folder.name  # one for each test, since they share an MLflow
        self.run_id = open_run(plan_run(self.job_id, self.spec, self.manifest))
        self.search = Search(replace(make_grant(folder), job_id=self.job_id), self.spec, self.run_id, None)  # type: ignore[arg-type]

    def child(self, number: int) -> str:
        document = trial(number)
        task = self.search.task(document)
        child = Child(self.run_id, number, "trial", {})
        return open_run(plan_run(self.job_id, task.spec, self.manifest, child=child))


@pytest.fixture
def made(tracking: None, tmp_path: Path) -> Stage:
    return Stage(tmp_path)


def status(run_id: str) -> str:
    return str(MlflowClient().get_run(run_id).info.status)


def test_the_runs_of_trials_whose_processes_died_are_ended_as_the_trials_were(made: Stage) -> None:
    runs = [made.child(number) for number in (1, 2, 3)]
    assert open_children(made.run_id) == set(runs)
    ended = [trial(1, "stopped", why="behind"), trial(2, "failed", why="loss is nan"), trial(3, "running")]
    documents: list[dict[str, Any]] = [{**one, "mlflow_run": run} for one, run in zip(ended, runs, strict=True)]
    _close_runs(made.search, documents[:2])
    assert [status(run) for run in runs] == ["FINISHED", "FAILED", "RUNNING"]
    assert open_children(made.run_id) == {runs[2]}
    assert MlflowClient().get_run(runs[1]).data.tags["segfleet.error"] == "loss is nan"
    _close_runs(made.search, documents)
    assert status(runs[2]) == "FAILED", "the search has failed, and takes what ran with it"


def test_a_life_before_a_retry_from_the_start_leaves_no_run_that_a_new_trial_could_take(made: Stage) -> None:
    old = made.child(1)
    forget_children(made.run_id)
    assert MlflowClient().get_run(old).info.lifecycle_stage == "deleted"
    # Optuna may choose other values this time, which MLflow would refuse for the old run.
    other = make_search({"optim.lr": [0.5]}, base={"data": made.spec.base.data.model_dump()})
    made.search = replace(made.search, spec=other)
    assert made.child(1) != old
    assert status(made.run_id) == "RUNNING", "the search's own run stays"


def test_a_driver_that_finds_no_trials_begins_with_an_empty_house(
    made: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray does not come to it: what is before the first trial is looked at."""
    left = tmp_path / "trials" / "1" / "job-aaaaaaaa-a1"
    left.mkdir(parents=True)
    old = made.child(1)

    class ReachedError(Exception):
        pass

    def reach(*_: Any) -> None:
        raise ReachedError

    monkeypatch.setattr(search_module, "Board", reach)
    for trials, is_there in (([trial(1)], True), ([], False)):
        with pytest.raises(ReachedError):
            search_module._search(made.search, type("Service", (), {"trials": lambda _, t=trials: t})(), None)  # type: ignore[arg-type]
        assert left.exists() is is_there
        assert (old in open_children(made.run_id)) is is_there
