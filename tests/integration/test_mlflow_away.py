"""MLflow away, slow, wrong or losing answers: the training does not wait, and nothing is missing or doubled."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import mlflow
import pytest
from mlflow import MlflowClient

from mlflow_faults import Faults, behind_faults
from processes import mlflow_server
from segfleet.errors import ServiceError
from segfleet.registry.registration import Registration, of_job
from segfleet.registry.registry import Registry
from segfleet_jobs import patience as patience_module
from segfleet_jobs.logged_model import log_segmenter
from segfleet_jobs.patience import Patience
from segfleet_jobs.replay import settle
from segfleet_jobs.run_plan import RunPlan
from segfleet_jobs.spool import segments
from segfleet_jobs.tracker import CONFUSION_FILE, Tracker
from segfleet_jobs.tracking import end_run

pytestmark = [
    pytest.mark.integration,
    pytest.mark.filterwarnings("ignore::UserWarning:mlflow"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning:mlflow"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

STEPS, PICTURE_EVERY = 300, 50
RATES = {"away": 0.06, "slow": 0.06, "error": 0.08, "lost": 0.12, "cut": 0.06}
CONFIG = {"model": {"arch": "segmenter"}, "class_names": ["a"], "step": 400}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with mlflow_server(tmp_path_factory.mktemp("mlflow")) as url:
        yield url


@pytest.fixture
def truth(server: str) -> MlflowClient:
    """Sees the server without its faults."""
    return MlflowClient(tracking_uri=server, registry_uri=server)


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    monkeypatch.setattr(patience_module, "LONGEST_PAUSE_S", 0.05)


@pytest.fixture
def faults(server: str) -> Iterator[Faults]:
    faults = Faults(seed=7)
    before = mlflow.get_tracking_uri()
    with behind_faults(server, faults) as url:
        mlflow.set_tracking_uri(url)
        yield faults
        mlflow.set_tracking_uri(before)


def plan_of(name: str) -> RunPlan:
    document = {"kind": "train", "train": {"steps": STEPS}}
    return RunPlan("segfleet/away", name, {"segfleet.job": name}, {"segfleet.dataset": "d"}, {"t": "x"}, document)


def train(tracker: Tracker, begin: int = 1, end: int = STEPS, faults: Faults | None = None) -> float:
    """Steps without training; the longest, seconds."""
    longest = 0.0
    for step in range(begin, end + 1):
        at = time.perf_counter()
        tracker.metrics(step, {"train/loss": 1 / step, "train/lr": step / 7, "val_iou/a, b": step / 3})
        if step % PICTURE_EVERY == 0:
            tracker.picture(step, b"png" * 1000)
            tracker.confusion(step, [[step, 0], [0, 1]], ["a", "b"])
            tracker.sync()
        longest = max(longest, time.perf_counter() - at)
        time.sleep(0.005)
        if faults is not None:
            faults.always = "away" if end // 3 < step < end // 2 else ""
    return longest


def points(client: MlflowClient, run_id: str, name: str) -> list[tuple[int, float]]:
    return [(point.step, point.value) for point in client.get_metric_history(run_id, name)]


def assert_complete(client: MlflowClient, name: str, steps: int = STEPS) -> str:
    """All points once, all pictures, one run; its id."""
    experiment = client.get_experiment_by_name("segfleet/away")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id], f"tags.`segfleet.job` = '{name}'")
    assert len(runs) == 1
    run_id = str(runs[0].info.run_id)
    for curve, value in (
        ("train/loss", lambda s: 1 / s),
        ("train/lr", lambda s: s / 7),
        ("val_iou/a_ b", lambda s: s / 3),
    ):
        assert sorted(points(client, run_id, curve)) == [(step, value(step)) for step in range(1, steps + 1)]
    sheets = [entry.path for entry in client.list_artifacts(run_id, "predictions")]
    assert sheets == [f"predictions/step-{step:08d}.png" for step in range(PICTURE_EVERY, steps + 1, PICTURE_EVERY)]
    assert {entry.path for entry in client.list_artifacts(run_id)} == {CONFUSION_FILE, "predictions", "spec.json"}
    return run_id


def register(registry: Registry, wanted: Registration) -> str:
    """As an attempt asks the service: until it answers."""
    for _ in range(200):
        try:
            return registry.register(wanted)
        except ServiceError:
            continue
    raise AssertionError("never registered")


def test_with_every_fault_by_chance_nothing_is_missing_or_doubled_and_no_step_waits(
    faults: Faults, truth: MlflowClient, tmp_path: Path
) -> None:
    faults.rates = RATES
    plan, weights, patience = plan_of("chance"), tmp_path / "model.safetensors", Patience()
    weights.write_bytes(b"weights" * 1000)
    tracker = Tracker(tmp_path / "spool", plan)
    assert train(tracker, faults=faults) < 1.0
    tracker.close(0.5)
    run_id = settle(tmp_path / "spool", plan, patience)
    assert assert_complete(truth, "chance") == run_id
    uri = log_segmenter(run_id, weights, CONFIG, patience)
    end_run(run_id, {"miou": 0.5}, patience)
    registry = Registry(mlflow.get_tracking_uri())
    wanted = Registration("chance", run_id, uri, of_job("chance", 1), {"miou": 0.5}, {})
    assert register(registry, wanted) == register(registry, wanted) == "1"
    assert len(truth.search_model_versions("name = 'chance'")) == 1
    assert [model.model_uri for model in models_of(truth, run_id)] == [uri]
    assert truth.get_run(run_id).info.status == "FINISHED"
    assert patience.waited_s > 0
    assert all(faults.seen[fault] for fault in RATES)


def models_of(client: MlflowClient, run_id: str) -> list[mlflow.entities.LoggedModel]:
    experiment = client.get_run(run_id).info.experiment_id
    return list(client.search_logged_models([experiment], f"source_run_id = '{run_id}'"))


@pytest.mark.parametrize("fault", ["lost", "error"])
def test_a_fault_at_each_call_leaves_one_run_one_model_and_one_version(
    fault: str, faults: Faults, truth: MlflowClient, tmp_path: Path
) -> None:
    """Each call that changes something is hit once, whoever would repeat it blindly makes two."""
    calls = (
        "experiments/create", "runs/create", "runs/update", "log-batch", "PUT .*spec.json", "PUT .*confusion.json",
        "POST .*logged-models$", "PUT .*MLmodel", "runs/outputs", "PATCH .*logged-models", "registered-models/create",
        "model-versions/create", "registered-models/alias",
    )  # fmt: skip
    faults.once = [(call, fault) for call in calls]
    plan, weights = plan_of(f"each-{fault}"), tmp_path / "model.safetensors"
    weights.write_bytes(fault.encode())
    tracker = Tracker(tmp_path / "spool", plan)
    train(tracker, end=PICTURE_EVERY)
    tracker.close(0.1)
    run_id = settle(tmp_path / "spool", plan, Patience())
    uri = log_segmenter(run_id, weights, CONFIG)
    assert log_segmenter(run_id, weights, CONFIG) == uri
    registry = Registry(mlflow.get_tracking_uri())
    wanted = Registration(f"each-{fault}", run_id, uri, of_job(f"each-{fault}", 1), {}, {})
    assert register(registry, wanted) == "1"
    for _ in range(2):
        try:
            registry.set_alias(wanted.name, "best", "1")
        except ServiceError:
            continue
    assert registry.holder(wanted.name, "best") == "1"
    assert assert_complete(truth, f"each-{fault}", PICTURE_EVERY) == run_id
    # A request that was given up, and carried out all the same much later.
    truth.create_model_version(wanted.name, uri, run_id, dict(wanted.identity), model_id=uri.removeprefix("models:/"))
    assert register(registry, wanted) == "1"
    assert len(truth.search_model_versions(f"name = '{wanted.name}'")) == 1
    assert len(models_of(truth, run_id)) == 1
    assert [output.model_id for output in truth.get_run(run_id).outputs.model_outputs] == [uri.removeprefix("models:/")]
    assert faults.once in ([], [("experiments/create", fault)])


def test_the_next_attempt_writes_what_killed_ones_have_left(
    faults: Faults, truth: MlflowClient, tmp_path: Path
) -> None:
    """Each attempt is killed while its writer is at work, and redoes steps of the one before."""
    faults.rates, plan = RATES, plan_of("killed")
    for begin in range(1, 100, 20):
        child = os.fork()
        if child == 0:
            train(Tracker(tmp_path / "spool", plan), max(1, begin - 5), begin + 20)
            os.kill(os.getpid(), signal.SIGSTOP)
        os.waitpid(child, os.WUNTRACED)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    tracker = Tracker(tmp_path / "spool", plan)
    train(tracker, end=120)
    tracker.close(30.0)
    faults.rates = {}
    settle(tmp_path / "spool", plan, Patience())
    assert_complete(truth, "killed", 120)
    assert len(segments(tmp_path / "spool")) == 1
    assert not list((tmp_path / "spool" / "files").glob("*"))


def test_a_writer_that_was_overtaken_writes_no_more(faults: Faults, truth: MlflowClient, tmp_path: Path) -> None:
    """A node that was cut off comes back: what its training went on to tell is nobody's any more."""
    faults.always = "away"
    overtaken = Tracker(tmp_path / "spool", plan_of("zombie"))
    train(overtaken, end=50)
    new = Tracker(tmp_path / "spool", plan_of("zombie"))
    faults.always = ""
    train(new, begin=41, end=60)
    train(overtaken, begin=51, end=55)
    new.close(30.0)
    overtaken.close(30.0)
    experiment = truth.get_experiment_by_name("segfleet/away")
    runs = truth.search_runs([experiment.experiment_id], "tags.`segfleet.job` = 'zombie'")
    assert len(runs) == 1
    assert sorted(points(truth, runs[0].info.run_id, "train/loss")) == [(step, 1 / step) for step in range(1, 61)]
