"""Removal of runs against a real MLflow server: rows are marked, files are gone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import mlflow
import pytest
from mlflow import MlflowClient

from processes import mlflow_server
from segfleet.registry.registration import Registration, of_job
from segfleet.registry.registry import Registry

pytestmark = pytest.mark.integration

MODEL_CODE = """
import mlflow

class Echo(mlflow.pyfunc.PythonModel):
    def predict(self, context, model_input: list[int]):
        return model_input

mlflow.models.set_model(Echo())
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("mlflow")


@pytest.fixture(scope="module")
def server(home: Path) -> Iterator[str]:
    with mlflow_server(home) as url:
        yield url


def logged(server: str, folder: Path, tags: dict[str, str]) -> tuple[str, str]:
    """(run id, model URI) of a run with a file and a model."""
    (folder / "echo.py").write_text(MODEL_CODE)
    mlflow.set_tracking_uri(server)
    try:
        with mlflow.start_run(tags=tags) as run:
            mlflow.log_text("curve", "pictures/curve.txt")
            info = mlflow.pyfunc.log_model(name="m", python_model=str(folder / "echo.py"), pip_requirements=[])
        return run.info.run_id, info.model_uri
    finally:
        mlflow.set_tracking_uri(None)


def files(home: Path, part: str) -> list[Path]:
    return [path for path in home.rglob("*") if path.is_file() and part in str(path)]


def test_a_run_goes_with_its_model_and_all_files_unless_a_version_comes_from_it(
    server: str, home: Path, tmp_path: Path
) -> None:
    registry, client = Registry(server), MlflowClient(tracking_uri=server)
    held, uri = logged(server, tmp_path, {"segfleet.job": "job-aaaaaaaa"})
    trial, trial_uri = logged(server, tmp_path, {"segfleet.search": "job-bbbbbbbb", "segfleet.trial": "1"})
    logged(server, tmp_path, {"other": "x"})
    wanted = Registration(
        name="kept", run_id=held, model_uri=uri, identity=of_job("job-aaaaaaaa", 0), metrics={}, tags={}
    )
    registry.register(wanted)
    assert registry.versions_by_job() == {"job-aaaaaaaa": ["kept/1"]}
    assert registry.runs_by_job() == {"job-aaaaaaaa": [held], "job-bbbbbbbb": [trial]}
    model_id = trial_uri.removeprefix("models:/")
    assert files(home, trial)
    assert files(home, model_id)
    kept = len(files(home, held)) + len(files(home, uri.removeprefix("models:/")))
    assert registry.remove_run(trial)
    assert (files(home, trial), files(home, model_id)) == ([], [])
    assert client.get_run(trial).info.lifecycle_stage == "deleted"
    assert registry.runs_by_job() == {"job-aaaaaaaa": [held]}
    assert not registry.remove_run(held)
    assert len(files(home, held)) + len(files(home, uri.removeprefix("models:/"))) == kept
    assert not registry.remove_run("f" * 32)
    # Cut off after the files and before the mark, it is found again and ended.
    client.restore_run(trial)
    assert registry.runs_by_job()["job-bbbbbbbb"] == [trial]
    assert registry.remove_run(trial)
