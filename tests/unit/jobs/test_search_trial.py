"""What a trial tells of itself while it trains, and what the search makes of what is recorded of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray.exceptions
import torch

from searched import FakeAttempt, FakeHeart, make_grant, make_search, trial
from segfleet.errors import AttemptFencedError, ServiceError
from segfleet.spec.search import final_spec, trial_spec
from segfleet_jobs import trial as trial_module
from segfleet_jobs.attempt import Yielded
from segfleet_jobs.checked_data import CheckedData
from segfleet_jobs.checkpoint import CheckpointRecord
from segfleet_jobs.checkpoint_store import FolderStore, prune
from segfleet_jobs.failure import NonFiniteLossError
from segfleet_jobs.search import parallel_trials
from segfleet_jobs.search_measure import model_key
from segfleet_jobs.trial import Search, run_trial
from segfleet_jobs.trial_link import TrialLink
from segfleet_jobs.trial_task import Task, is_validation, stop_sign, validation_of

CHECKED = CheckedData(("a" * 64,), (frozenset(),), (), ())
VALIDATED = {"val/miou": 0.5, "val/pixel_accuracy": 0.7, "val/mean_accuracy": 0.6}


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


class FakeTracker:
    def __init__(self) -> None:
        self.points: list[tuple[int, dict[str, float]]] = []

    def metrics(self, step: int, values: dict[str, float]) -> None:
        self.points.append((step, values))

    def sync(self) -> None:
        pass


def make_task(folder: Path, document: dict[str, Any] | None = None, **search: Any) -> Task:
    made = Search(
        make_grant(folder, 4), make_search(base={"resources": {"workers": 2}, **BASE}, **search), "run", CHECKED
    )
    return made.task(document or trial(1, "running"))


BASE = {
    "data": {"shards": "/data/shards"},
    "train": {"steps": 7, "validate_every": 2, "global_batch": 2, "crop": 32},
    "eval": {"window": 48, "stride": 48},
}


def make_link(folder: Path, attempt: FakeAttempt, clock: Clock, task: Task | None = None) -> TrialLink:
    task = task or make_task(folder)
    return TrialLink(attempt.trial(1), FakeHeart(), FakeTracker(), task, clock)  # type: ignore[arg-type]


def record(step: int, folder: Path = Path("/x")) -> CheckpointRecord:
    return CheckpointRecord(str(folder / f"step-{step:08d}"), step, "0" * 64, 1, step)


def test_validations_are_reported_by_number_with_the_searchs_metric_and_the_seconds_so_far(tmp_path: Path) -> None:
    clock, attempt = Clock(), FakeAttempt({1: trial(1, "running")})
    task = make_task(tmp_path, metric="val/pixel_accuracy")
    link = make_link(tmp_path, attempt, clock, task)
    clock.now += 5.0
    link.metrics(1, {"train/loss": 1.0})
    link.metrics(2, VALIDATED)
    link.metrics(2, VALIDATED)
    clock.now += 5.0
    link.metrics(4, VALIDATED)
    link.metrics(7, VALIDATED)
    told = [(r["validation"], r["step"], r["value"], r["miou"], r["seconds"]) for r in attempt.documents[1]["reports"]]
    assert told[:2] == [(1, 2, 0.7, 0.5, 5.0), (2, 4, 0.7, 0.5, 10.0)]
    assert validation_of(7, 2) == 4, "the last step validates, whether it is its turn or not"
    assert [step for step in range(1, 8) if is_validation(step, task.spec)] == [2, 4, 6, 7]


def test_the_log_has_a_line_for_each_point_that_names_the_trial(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    link = make_link(tmp_path, FakeAttempt({1: trial(1, "running")}), Clock())
    link.metrics(1, {"train/loss": 1.23456, "train/lr": 0.001, "train/samples_per_s": 12.34, "time/data_s": 3.0})
    link.metrics(2, VALIDATED)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "segfleet: trial 1 step 1: loss 1.235, lr 0.001, 12.3 samples/s"
    assert lines[1].startswith("segfleet: trial 1 step 2: mIoU 0.5000, pixel accuracy 0.7000")


def test_the_final_training_tells_how_far_it_is_and_a_trial_leaves_that_to_the_driver(tmp_path: Path) -> None:
    document = {"phase": "train", "step": 3, "num_steps": 7}
    for kind, told in (("trial", []), ("final", [document | {"phase": "final training, train"}])):
        heart = FakeHeart()
        task = replace(make_task(tmp_path), kind=kind)
        TrialLink(FakeAttempt({1: trial(1, "running")}).trial(1), heart, FakeTracker(), task).progress(document)  # type: ignore[arg-type]
        assert heart.told == told


def test_a_resumed_trial_counts_on_from_its_checkpoint(tmp_path: Path) -> None:
    document = trial(1, "running", (0.1, 0.2), checkpoint=record(3).to_dict(), worker_seconds=40.0)
    task = make_task(tmp_path, document)
    assert (task.seconds, task.worker_seconds) == (10.0, 40.0), "the second validation comes after the checkpoint"
    clock, attempt = Clock(), FakeAttempt({1: document})
    link = make_link(tmp_path, attempt, clock, task)
    clock.now += 5.0
    link.set_checkpoint(record(4))
    assert attempt.documents[1]["checkpoint"]["step"] == 4
    assert attempt.documents[1]["worker_seconds"] == 50.0, "two workers for 5 s"


def test_a_trial_ends_when_its_sign_is_there_and_tells_no_more(tmp_path: Path) -> None:
    clock, attempt = Clock(), FakeAttempt({1: trial(1, "running")})
    link = make_link(tmp_path, attempt, clock)
    sign = stop_sign(tmp_path / "trials" / "1")
    sign.parent.mkdir(parents=True)
    assert not link.must_yield()
    sign.touch()
    attempt.documents[1]["state"] = "stopped"
    link.set_checkpoint(record(2))
    link.metrics(2, VALIDATED)
    assert link.must_yield()
    assert attempt.documents[1]["checkpoint"] is None


def test_the_sign_is_looked_for_once_a_second(tmp_path: Path) -> None:
    clock, attempt = Clock(), FakeAttempt({1: trial(1, "running")})
    link = make_link(tmp_path, attempt, clock)
    sign = stop_sign(tmp_path / "trials" / "1")
    sign.parent.mkdir(parents=True)
    sign.touch()
    assert not link.must_yield()
    clock.now += 1.0
    assert link.must_yield()


def test_what_the_service_refuses_of_a_trial_that_was_not_stopped_is_an_error(tmp_path: Path) -> None:
    link = make_link(tmp_path, FakeAttempt({1: trial(1, "waiting")}), Clock())
    with pytest.raises(ServiceError):
        link.metrics(2, VALIDATED)


class Group:
    """Stands for `run_group`: each run of the group ends in the next way."""

    def __init__(self, trial: Any, *ends: Any) -> None:
        self.trial, self.ends, self.names = trial, list(ends), []

    def __call__(self, grant: Any, resources: Any, body: Any, config: Any, one: Any) -> Any:
        self.names.append(one.name)
        end = self.ends.pop(0)
        if isinstance(end, tuple):
            step, end = end
            self.trial.document["checkpoint"] = record(step).to_dict()
        if isinstance(end, Exception):
            raise end
        return end


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    attempt = FakeAttempt({1: trial(1, "waiting")})
    attempt.close = lambda: None  # type: ignore[attr-defined]
    ended: list[str] = []

    class Manifests:
        @staticmethod
        def load(location: str) -> None:
            return None

    monkeypatch.setattr(trial_module, "AttemptClient", lambda _: attempt)
    monkeypatch.setattr(trial_module, "Manifest", Manifests)
    monkeypatch.setattr(trial_module, "plan_run", lambda *_: None)
    monkeypatch.setattr(trial_module, "open_run", lambda *_: "run-1")
    monkeypatch.setattr(trial_module, "settle", lambda *_: "run-1")
    monkeypatch.setattr(trial_module, "end_run", lambda *_: ended.append("ended"))
    monkeypatch.setattr(trial_module, "give_up", lambda *_: ended.append("failed"))

    def run(*ends: Any) -> tuple[Any, Group, list[str]]:
        group = Group(attempt.trial(1), *ends)
        monkeypatch.setattr(trial_module, "run_group", group)
        return run_trial(make_task(tmp_path)), group, ended

    return run


LOST = ray.exceptions.RayActorError()


def test_a_trial_runs_to_its_end(world: Any) -> None:
    outcome, _, ended = world({"miou": 0.5})
    assert (outcome.state, outcome.result, outcome.run_id, ended) == ("succeeded", {"miou": 0.5}, "run-1", ["ended"])


def test_lost_workers_are_replaced_as_long_as_there_are_new_checkpoints(world: Any) -> None:
    outcome, group, _ = world((1, LOST), LOST, LOST, (2, LOST), LOST, LOST, {"miou": 0.5})
    assert outcome.state == "succeeded"
    assert len(set(group.names)) == 7, "a name used twice would go on with what the earlier group has left"


def test_losses_without_an_end_fail_the_trial(world: Any) -> None:
    outcome, group, ended = world(*[LOST] * 9)
    assert (outcome.state, outcome.failure, ended) == ("failed", "infra", ["failed"])
    assert len(group.names) == trial_module.MAX_LOSSES + 1


@pytest.mark.parametrize(
    ("error", "failure"),
    [(NonFiniteLossError("loss is nan"), "nan"), (torch.OutOfMemoryError("full"), "oom"), (KeyError("x"), "user")],
)
def test_what_would_come_again_fails_the_trial_at_once(world: Any, error: Exception, failure: str) -> None:
    outcome, group, _ = world(error)
    assert (outcome.state, outcome.failure, len(group.names)) == ("failed", failure, 1)


def test_an_attempt_that_has_lost_the_search_ends_at_once(world: Any) -> None:
    class WorkerGroupError(Exception):
        worker_failures: Any

    error = WorkerGroupError()
    error.worker_failures = {0: ConnectionError("closed by peer"), 1: AttemptFencedError("job-aaaaaaaa-a1", "over")}
    with pytest.raises(AttemptFencedError):
        world(error)


def test_a_trial_that_was_asked_to_end_was_stopped_or_made_room(world: Any, tmp_path: Path) -> None:
    assert world(Yielded(3))[0].state == "yielded"
    sign = stop_sign(tmp_path / "trials" / "1")
    sign.touch()
    assert world(Yielded(3))[0].state == "stopped"
    assert world(ConnectionError("closed by peer"))[0].state == "stopped"


def test_of_an_ended_trial_the_latest_and_the_best_checkpoint_are_kept(tmp_path: Path) -> None:
    for attempt, step in (("job-x-a1", 2), ("job-x-a1", 4), ("job-x-a2", 6), ("job-x-a2", 8)):
        (tmp_path / attempt / f"step-{step:08d}").mkdir(parents=True)
    last = CheckpointRecord(str(tmp_path / "job-x-a2" / "step-00000008"), 8, "0" * 64, 1, 4)
    prune(FolderStore(tmp_path, tmp_path / "job-x-a2"), last, latest=1)
    assert sorted(int(path.name[5:]) for path in tmp_path.glob("*/step-*")) == [4, 8]


def test_no_more_trials_at_a_time_than_the_granted_workers_can_work_on(tmp_path: Path) -> None:
    spec = make_search(base={"resources": {"workers": 2}}, max_parallel=3)
    granted = {workers: parallel_trials(make_grant(tmp_path, workers), spec) for workers in (2, 3, 4, 6, 20)}
    assert granted == {2: 1, 3: 1, 4: 2, 6: 3, 20: 3}


def test_models_of_one_size_and_speed_are_measured_once() -> None:
    spec = make_search({"optim.lr": [0.001, 0.002], "model.patch_size": [8, 16], "model.dropout": [0.0, 0.1]})
    plain = {"optim.lr": 0.001, "model.patch_size": 16, "model.dropout": 0.0}
    key = model_key(trial_spec(spec, plain))
    assert model_key(trial_spec(spec, {**plain, "optim.lr": 0.002, "model.dropout": 0.1})) == key
    assert model_key(trial_spec(spec, {**plain, "model.patch_size": 8})) != key
    final = final_spec(make_search({"optim.lr": [0.001]}, final={"set": {"train.crop": 64}}), {"optim.lr": 0.001})
    assert final is not None
    assert model_key(final) != model_key(trial_spec(make_search({"optim.lr": [0.001]}), {"optim.lr": 0.001}))
