"""MLflow for real, on SQLite: one run a job, no point twice, a model that loads and predicts by itself."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import mlflow
import numpy as np
import pytest
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE, TEMPORARILY_UNAVAILABLE

from segfleet.errors import ServiceError
from segfleet.spec.filling import leaves
from segfleet_jobs import patience as patience_module
from segfleet_jobs.checkpoint import load_checkpoint
from segfleet_jobs.logged_model import log_model
from segfleet_jobs.patience import patiently
from segfleet_jobs.registered_model import load_registered
from segfleet_jobs.run_plan import plan_run
from segfleet_jobs.tracker import CONFUSION_FILE, Tracker
from segfleet_jobs.tracking import end_run, fail_run, open_run
from segfleet_models.inference import predict
from segfleet_pipelines.manifest import Manifest
from training import RecordingLink, make_dataset, make_train_spec, run_alone

pytestmark = [
    pytest.mark.integration,
    # MLflow's own code on current libraries.
    pytest.mark.filterwarnings("ignore::UserWarning:mlflow"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning:mlflow"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_dataset(tmp_path_factory.mktemp("boxes"))


@pytest.fixture(scope="module")
def tracking(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    folder = tmp_path_factory.mktemp("mlflow")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
        patch.setenv("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
        patch.chdir(folder)
        before = mlflow.get_tracking_uri()
        mlflow.set_tracking_uri(f"sqlite:///{folder / 'mlflow.db'}")
        yield
        mlflow.set_tracking_uri(before)


def test_a_job_has_one_run_over_all_its_attempts(shards: str, tracking: None) -> None:
    spec, manifest = make_train_spec(shards), Manifest.load(shards)
    plan = plan_run("job-one", spec, manifest, {"segfleet.mixed_content_ids": "b" * 64})
    first = open_run(plan)
    fail_run(first, "worker lost")
    assert mlflow.MlflowClient().get_run(first).info.status == "FAILED"
    assert open_run(plan) == first
    assert open_run(plan_run("job-two", spec, manifest)) != first
    run = mlflow.MlflowClient().get_run(first)
    assert run.info.status == "RUNNING"
    assert run.data.params["train.steps"] == "6"
    assert run.data.tags["segfleet.content_id"] == manifest.content_id
    assert run.data.tags["segfleet.mixed_content_ids"] == "b" * 64


def test_a_resumed_attempt_writes_no_point_twice(shards: str, tracking: None, tmp_path: Path) -> None:
    plan = plan_run("job-resumed", make_train_spec(shards), Manifest.load(shards))
    for attempt in (range(1, 5), range(3, 8)):
        tracker = Tracker(tmp_path, plan)
        for step in attempt:
            tracker.metrics(step, {"train/loss": float(step), "val/nothing": float("nan")})
            time.sleep(0.002)  # MLflow tells points apart by their milliseconds
        tracker.close()
    run_id = open_run(plan)
    points = mlflow.MlflowClient().get_metric_history(run_id, "train/loss")
    assert sorted((point.step, point.value) for point in points) == [(step, float(step)) for step in range(1, 8)]
    assert mlflow.MlflowClient().get_metric_history(run_id, "val/nothing") == []


def test_odd_class_names_reach_mlflow_and_refused_points_do_not_block(
    shards: str, tracking: None, tmp_path: Path
) -> None:
    plan = plan_run("job-names", make_train_spec(shards), Manifest.load(shards))
    tracker = Tracker(tmp_path, plan)
    tracker.metrics(1, {"val_iou/building, edifice (old) & 'new'": 0.5})
    tracker.metrics(2, {"": 0.5})
    tracker.metrics(3, {"train/loss": 0.25})
    tracker.close(30.0)
    client, run_id = mlflow.MlflowClient(), open_run(plan)
    assert client.get_metric_history(run_id, "train/loss")[0].value == 0.25
    assert client.get_run(run_id).data.metrics["val_iou/building_ edifice _old_ _ _new_"] == 0.5


def test_an_mlflow_that_comes_back_is_waited_for_and_a_refusal_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience_module.time, "sleep", lambda _: None)
    answers = iter([MlflowException("away", error_code=TEMPORARILY_UNAVAILABLE)] * 3)

    def call() -> str:
        for error in answers:
            raise error
        return "done"

    assert patiently(call) == "done"

    def refused() -> str:
        raise MlflowException("no", error_code=INVALID_PARAMETER_VALUE)

    with pytest.raises(ServiceError, match="no"):
        patiently(refused)


def test_a_failure_is_not_hidden_by_an_absent_mlflow(tracking: None) -> None:
    fail_run("0" * 32, "the true reason")


def test_a_sheet_of_pictures_arrives(shards: str, tracking: None, tmp_path: Path) -> None:
    plan = plan_run("job-pictures", make_train_spec(shards), Manifest.load(shards))
    tracker = Tracker(tmp_path, plan)
    tracker.picture(40, b"png")
    tracker.close()
    artifacts = mlflow.MlflowClient().list_artifacts(open_run(plan), "predictions")
    assert [entry.path for entry in artifacts] == ["predictions/step-00000040.png"]


def test_the_confusion_of_the_best_validation_replaces_an_earlier_one(
    shards: str, tracking: None, tmp_path: Path
) -> None:
    plan = plan_run("job-confusion", make_train_spec(shards), Manifest.load(shards))
    tracker = Tracker(tmp_path / "spool", plan)
    tracker.confusion(20, [[1, 2], [3, 4]], ("a", "b"))
    tracker.confusion(40, [[5, 0], [0, 5]], ("a", "b"))
    tracker.close()
    path = mlflow.MlflowClient().download_artifacts(open_run(plan), CONFUSION_FILE, str(tmp_path))
    kept = json.loads(Path(path).read_text())
    assert kept == {"step": 40, "class_names": ["a", "b"], "matrix": [[5, 0], [0, 5]]}


def test_the_exported_model_predicts_like_the_trained_one_in_a_fresh_process(
    shards: str, tracking: None, tmp_path: Path
) -> None:
    spec, manifest = make_train_spec(shards), Manifest.load(shards)
    link = RecordingLink()
    result = run_alone(spec, tmp_path / "job", link)
    assert max(link.confusions) == result["best_step"]
    right = link.confusions[result["best_step"]].diagonal().sum() / link.confusions[result["best_step"]].sum()
    assert float(right) == pytest.approx(result["pixel_accuracy"])
    best = load_checkpoint(Path(link.records[-1].path))
    run_id = open_run(plan_run("job-export", spec, manifest))
    uri = log_model(run_id, best.path / "model.safetensors", best.meta, spec, manifest)
    end_run(run_id, {"miou": 0.5, "best_step": best.step})
    folder = Path(mlflow.artifacts.download_artifacts(uri, dst_path=str(tmp_path / "model")))
    assert not list(folder.rglob("*.pkl"))
    picture = np.zeros((50, 61, 3), np.uint8)
    picture[10:30, 10:30] = (220, 60, 60)
    labels = mlflow.pyfunc.load_model(str(folder)).predict(picture[None])
    assert labels.shape == (1, 50, 61)
    assert labels.dtype == np.int64
    stored = load_registered(folder).stored
    assert np.array_equal(predict(stored.model, picture, stored.window).numpy(), labels[0])
    np.save(tmp_path / "picture.npy", picture[None])
    # Without our packages on the path: the model must carry its own code.
    script = (
        "import sys\n"
        "ours = ('/platform', '/models', '/pipelines', '/jobs')\n"
        "sys.path = [path for path in sys.path if not path.endswith(ours)]\n"
        "import mlflow, numpy\n"
        f"labels = mlflow.pyfunc.load_model({str(folder)!r}).predict(numpy.load({str(tmp_path / 'picture.npy')!r}))\n"
        f"numpy.save({str(tmp_path / 'labels.npy')!r}, labels)\n"
        "assert 'segfleet_jobs' not in sys.modules and 'segfleet' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, timeout=120)
    assert np.array_equal(np.load(tmp_path / "labels.npy"), labels)


def test_flatten() -> None:
    assert leaves({"a": {"b": 1, "c": {"d": None}}, "e": [1]}) == {"a.b": 1, "a.c.d": None, "e": [1]}


def test_a_rank_begins_without_mlflows_client(shards: str) -> None:
    config = pickle.dumps(plan_run("job-light", make_train_spec(shards), Manifest.load(shards)))
    script = f"""
import pickle, sys
from segfleet_jobs.links import train_alone
from segfleet_jobs.trial_body import train_one_rank
pickle.loads({config!r})
assert "mlflow" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)
