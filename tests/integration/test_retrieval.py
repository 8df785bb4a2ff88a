"""A trained model, retrieved from an MLflow server with a password and artifacts on S3: pulled, loaded where none of
our packages is, and serving pictures over HTTP."""

from __future__ import annotations

import base64
import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import mlflow
import numpy as np
import pytest
import yaml
from PIL import Image

from basic_auth import LOGIN, PASSWORD, behind_password
from processes import client_of, free_port, mlflow_server, running
from s3_server import BUCKET, s3_server
from segfleet.client import Client
from segfleet.registry.card import CARD
from segfleet_jobs.checkpoint import load_checkpoint
from segfleet_jobs.logged_model import log_model
from segfleet_jobs.origin import training_tags
from segfleet_jobs.registered_model import load_registered
from segfleet_jobs.run_plan import plan_run
from segfleet_jobs.tracker import Tracker
from segfleet_jobs.tracking import end_run, open_run
from segfleet_models.inference import predict
from segfleet_pipelines.manifest import Manifest
from training import RecordingLink, make_dataset, make_train_spec, run_alone

pytestmark = [
    pytest.mark.integration,
    pytest.mark.filterwarnings("ignore::UserWarning:mlflow"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning:mlflow"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

# What a clean environment does not have: of this project only what lies inside the model may be imported.
BARE = """
import sys
from importlib.abc import MetaPathFinder

class Missing(MetaPathFinder):
    names = {"segfleet", "segfleet_jobs", "segfleet_pipelines", "ray", "cv2", "webdataset", "optuna", "pyarrow_hotfix"}

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in self.names:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

ours = ("/platform", "/models", "/pipelines", "/jobs")
sys.path = [path for path in sys.path if not path.endswith(ours)]
sys.meta_path.insert(0, Missing())
"""


@dataclass(frozen=True)
class Place:
    """A service whose MLflow asks for a password, with one trained model in it."""

    home: Path
    port: int
    mlflow_uri: str
    refused: list[str]
    log: Path

    def client(self) -> Client:
        return client_of(self.home, self.port)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    home, port, folder = tmp_path_factory.mktemp("home"), free_port(), tmp_path_factory.mktemp("mlflow")
    with s3_server() as keys, pytest.MonkeyPatch.context() as patch:
        s3 = {**keys, "MLFLOW_S3_ENDPOINT_URL": keys["AWS_ENDPOINT_URL"], "AWS_DEFAULT_REGION": "us-east-1"}
        with (
            mlflow_server(folder, f"s3://{BUCKET}/mlflow", **s3) as inner,
            behind_password(inner) as (url, refused),
            running(home, port, SEGFLEET_MLFLOW_URI=url, **LOGIN),
        ):
            for name, text in LOGIN.items():
                patch.setenv(name, text)
            patch.setenv("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
            before = mlflow.get_tracking_uri()
            mlflow.set_tracking_uri(url)
            made = Place(home, port, url, refused, folder / "server.log")
            _train(made, tmp_path_factory.mktemp("work"))
            yield made
            mlflow.set_tracking_uri(before)


def _train(place: Place, folder: Path) -> None:
    shards = make_dataset(folder / "boxes")
    spec, manifest, link = make_train_spec(shards), Manifest.load(shards), RecordingLink()
    result = run_alone(spec, folder / "job", link)
    best = load_checkpoint(Path(link.records[-1].path))
    plan = plan_run("job-retrieved", spec, manifest)
    run_id = open_run(plan)
    tracker = Tracker(folder / "spool", plan)
    sheet = io.BytesIO()
    Image.new("RGB", (8, 8)).save(sheet, "PNG")
    tracker.picture(best.step, sheet.getvalue())
    tracker.confusion(best.step, link.confusions[result["best_step"]].tolist(), manifest.class_names)
    tracker.close()
    weights = best.path / "model.safetensors"
    uri = log_model(run_id, weights, best.meta, spec, manifest)
    end_run(run_id, {"miou": result["miou"], "best_step": best.step})
    tags = {**training_tags(spec, weights), "segfleet.step": str(best.step)}
    figures = {"miou": result["miou"]}
    with place.client() as client:
        client.register_model(
            "boxes", run_id=run_id, model_uri=uri, content_digest="a" * 64, alias="best", metrics=figures, tags=tags
        )


@pytest.fixture(scope="module")
def pulled(place: Place, tmp_path_factory: pytest.TempPathFactory) -> Path:
    with place.client() as client:
        return client.pull("boxes@best", tmp_path_factory.mktemp("pulled") / "model")


def picture(height: int, width: int) -> Any:
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[height // 4 : height // 2, width // 4 : width // 2] = (220, 60, 60)
    return pixels


def expected(folder: Path, pixels: Any) -> Any:
    stored = load_registered(folder).stored
    return predict(stored.model, pixels, stored.window).numpy()


def encoded(pixels: Any) -> str:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return base64.b64encode(out.getvalue()).decode()


def test_a_pulled_folder_says_all_of_the_model(pulled: Path) -> None:
    card = (pulled / CARD).read_text()
    assert card.startswith("# boxes/1 (@best)")
    assert "pictures/predictions.png" in card
    assert "pictures/confusion.svg" in card
    assert "licence.weights: none, it began with random weights" in card
    assert (pulled / "artifacts" / "model.safetensors").is_file()
    assert Image.open(pulled / "pictures" / "predictions.png").size == (8, 8)
    assert not list(pulled.rglob("*.pkl"))


def test_a_bare_process_loads_by_alias_and_labels_pictures_of_any_size(
    place: Place, pulled: Path, tmp_path: Path
) -> None:
    pictures = [picture(50, 61), picture(33, 90), picture(7, 5)]
    for i, pixels in enumerate(pictures):
        np.save(tmp_path / f"{i}.npy", pixels)
    script = f"""{BARE}
import mlflow, numpy
mlflow.set_tracking_uri({place.mlflow_uri!r})
model = mlflow.pyfunc.load_model("models:/boxes@best")
import segfleet_models
assert "/code/" in segfleet_models.__file__, segfleet_models.__file__
pictures = [numpy.load(f"{tmp_path}/{{i}}.npy") for i in range(3)]
labels = model.predict(pictures)
one, batch = model.predict(pictures[0]), model.predict(numpy.stack([pictures[1]] * 2))
assert (one == labels[0]).all() and batch.shape == (2, 33, 90) and (batch[1] == labels[1]).all()
assert one.dtype == numpy.int64
texts = model.predict([{encoded(pictures[0])!r}])
assert len(texts) == 1 and texts[0].startswith("iVBOR")
for wrong in ([numpy.zeros((4, 4))], numpy.zeros((4, 4), int), ["%"], [b"no picture"], [numpy.full((4, 4, 3), 256)]):
    try:
        model.predict(wrong)
    except ValueError as error:
        continue
    raise AssertionError(wrong)
numpy.savez("{tmp_path}/labels.npz", *labels)
assert not [name for name in sys.modules if name.partition(".")[0] in Missing.names]
"""
    environment = {**os.environ, **LOGIN, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-I", "-c", script], env=environment, capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 0, done.stderr
    with np.load(tmp_path / "labels.npz") as found:
        for pixels, name in zip(pictures, found.files, strict=True):
            assert np.array_equal(found[name], expected(pulled, pixels))


def test_what_a_model_asks_for_is_what_its_code_imports(pulled: Path) -> None:
    names = {line.partition("==")[0] for line in (pulled / "requirements.txt").read_text().splitlines()}
    assert names == {"mlflow", "numpy", "pillow", "safetensors", "timm", "torch", "torchvision"}
    versions = [line.partition("==")[2] for line in (pulled / "requirements.txt").read_text().splitlines()]
    assert all(versions)
    assert not any("+" in version for version in versions)
    flavour = yaml.safe_load((pulled / "MLmodel").read_text())["flavors"]["python_function"]
    assert flavour["code"] == "code"


def test_a_served_model_answers_a_picture_over_http(pulled: Path, tmp_path: Path) -> None:
    port = free_port()
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", str(pulled), "-p", str(port)]
    # It starts `uvicorn`, as an activated environment would find it.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    environment = {**os.environ, "PATH": path, "OMP_NUM_THREADS": "1", "MLFLOW_DISABLE_TELEMETRY": "true"}
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(
            [*command, "--env-manager", "local", "--workers", "1"],
            stdout=log,
            stderr=log,
            env=environment,
            start_new_session=True,
        )
        try:
            url = f"http://127.0.0.1:{port}"
            deadline = time.monotonic() + 100
            while time.monotonic() < deadline and process.poll() is None:
                try:
                    if httpx.get(f"{url}/ping", timeout=2).is_success:
                        break
                except httpx.TransportError:
                    time.sleep(0.2)
            pixels = picture(50, 61)
            answer = httpx.post(f"{url}/invocations", json={"inputs": [encoded(pixels), encoded(pixels)]}, timeout=60)
            assert answer.status_code == 200, answer.text
            mask = Image.open(io.BytesIO(base64.b64decode(answer.json()["predictions"][1])))
            assert np.array_equal(np.asarray(mask), expected(pulled, pixels))
            numbers = httpx.post(f"{url}/invocations", json={"inputs": [pixels.tolist()]}, timeout=60)
            assert np.array_equal(numbers.json()["predictions"], expected(pulled, pixels)[None])
            assert httpx.post(f"{url}/invocations", json={"inputs": ["%"]}, timeout=60).is_error
        finally:
            if process.poll() is None:
                os.killpg(process.pid, 15)
            process.wait(20)


def test_without_the_password_nothing_is_had_and_it_is_written_nowhere(place: Place, pulled: Path) -> None:
    known = len(place.refused)
    # Nothing of ours has ever asked without it.
    assert known == 0
    answer = httpx.get(f"{place.mlflow_uri}/api/2.0/mlflow/registered-models/search?max_results=1")
    assert answer.status_code == 401
    with place.client() as client:
        assert client.status()["mlflow"]["ok"]
        assert PASSWORD not in json.dumps(client.status())
    for path in [*place.home.rglob("*"), *pulled.rglob("*")]:
        if path.is_file():
            assert PASSWORD.encode() not in path.read_bytes(), path
