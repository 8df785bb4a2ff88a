"""Checkpoints of other code, from their files to a prediction: real service, real MLflow, real command line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
import torch
import yaml
from mlflow import MlflowClient
from PIL import Image
from torch import Tensor

from plain_checkpoints import enlarge, random_state, segment
from plain_mmseg import random_mmseg_state, segment_mmseg
from processes import client_of, free_port, mlflow_server, running
from segfleet.errors import ServiceError
from segfleet_jobs.import_model import register_import
from segfleet_jobs.imported_model import classes_of, read_checkpoint

pytestmark = [
    pytest.mark.integration,
    # MLflow's advice to the model's author, who is another here.
    pytest.mark.filterwarnings("ignore::UserWarning:mlflow"),
    pytest.mark.filterwarnings("ignore::FutureWarning:mlflow"),
]

SIDE, PATCH, GRID = 64, 16, 4
NAMES = ["sky", "road", "car", "tree", "sign"]


@dataclass(frozen=True)
class Place:
    """A running service and how to talk to it."""

    home: Path
    port: int
    mlflow: MlflowClient

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """`segfleet ...` as a user of this home runs it."""
        environment = {name: text for name, text in os.environ.items() if not name.startswith("SEGFLEET_")}
        environment |= {"SEGFLEET_HOME": str(self.home), "OMP_NUM_THREADS": "1"}
        environment |= {"SEGFLEET_URL": f"http://127.0.0.1:{self.port}"}
        environment |= {"SEGFLEET_TOKEN": (self.home / "token").read_text().strip()}
        command = [sys.executable, "-m", "segfleet.cli.main", *arguments]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)

    def json(self, *arguments: str) -> Any:
        """What a command that succeeds prints with --json."""
        done = self.run(*arguments, "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def imports(self) -> int:
        """Runs of imports in MLflow."""
        experiment = self.mlflow.get_experiment_by_name("segfleet/imports")
        return 0 if experiment is None else len(self.mlflow.search_runs([experiment.experiment_id]))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    home, port = tmp_path_factory.mktemp("home"), free_port()
    with (
        mlflow_server(tmp_path_factory.mktemp("mlflow")) as url,
        running(home, port, SEGFLEET_MLFLOW_URI=url),
    ):
        yield Place(home, port, MlflowClient(tracking_uri=url))


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as the reference code leaves it, of a mask decoder for Cityscapes."""
    folder = tmp_path_factory.mktemp("seg_tiny_mask")
    torch.save({"model": random_state(decoder="mask", patch=PATCH, classes=19), "n_cls": 19}, folder / "checkpoint.pth")
    decoder = {"name": "mask_transformer", "drop_path_rate": 0.0, "dropout": 0.1, "n_layers": 2, "n_cls": 19}
    net = {
        "image_size": (SIDE, SIDE), "patch_size": PATCH, "d_model": 192, "n_heads": 3, "n_layers": 12,
        "normalization": "vit", "backbone": "vit_tiny_patch16_384", "dropout": 0.0, "drop_path_rate": 0.1,
        "n_cls": 19, "decoder": decoder,
    }  # fmt: skip
    windows = {"im_size": SIDE, "window_size": SIDE, "window_stride": 32}
    document = {"net_kwargs": net, "inference_kwargs": windows, "dataset_kwargs": {"dataset": "cityscapes"}}
    (folder / "variant.yml").write_text(yaml.dump(document))
    return folder


@pytest.fixture(scope="module")
def mmseg(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A 1.x file of the linear decoder."""
    path = tmp_path_factory.mktemp("mmseg") / "iter_160000.pth"
    cfg = (
        "model = dict(backbone=dict(norm_cfg=dict(type='LN', eps=1e-06)), "
        f"test_cfg=dict(mode='slide', crop_size=({SIDE}, {SIDE}), stride=(32, 32)))\n"
        f"test_pipeline = [dict(type='Resize', scale=(2048, {SIDE}))]"
    )
    meta = {"dataset_meta": {"classes": NAMES, "palette": [[9 * i, 0, 200] for i in range(5)]}, "cfg": cfg}
    torch.save({"state_dict": random_mmseg_state(decoder="linear", patch=PATCH, classes=5), "meta": meta}, path)
    return path


def picture(path: Path) -> Tensor:
    """A picture of one window, saved; its pixels as 127.5/127.5 normalises them."""
    pixels = np.random.default_rng(1).integers(0, 256, (8, 8, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
    Image.fromarray(pixels).save(path)
    return (torch.from_numpy(pixels).permute(2, 0, 1)[None].float() - 127.5) / 127.5


def predicted(place: Place, model: str, folder: Path) -> Any:
    place.json("predict", str(folder / "street.png"), "--model", model, "--out", str(folder / "out"))
    return np.asarray(Image.open(folder / "out" / "street.png"))


def test_a_reference_checkpoint_predicts_what_the_plain_implementation_does(
    place: Place, reference: Path, tmp_path: Path
) -> None:
    command = ("models", "import", "--format", "reference", str(reference), "--name", "seg-t", "--alias", "released")
    made = place.json(*command)
    assert (made["name"], made["version"], made["alias"]) == ("seg-t", "1", "released")
    assert made["taken_over"]["class_names"][:2] == ["road", "sidewalk"]
    assert made["taken_over"]["left_out"] == ["encoder.head.bias", "encoder.head.weight"]
    pixels = picture(tmp_path / "street.png")
    state = random_state(decoder="mask", patch=PATCH, classes=19)
    plain = enlarge(segment(pixels, state, patch=PATCH, stored_grid=GRID, heads=3), PATCH, (SIDE, SIDE))
    assert np.mean(predicted(place, "seg-t@released", tmp_path) == plain.argmax(1)[0].numpy()) > 0.999

    runs = place.imports()
    again = place.run(*command[:-2], "--alias", "best")
    assert again.returncode == 0, again.stderr
    assert "registered as seg-t/1" in again.stdout
    assert "LayerNorm epsilon 1e-05; positions for 64 pixels, resized bilinear" in again.stdout
    assert place.imports() == runs
    with client_of(place.home, place.port) as client:
        versions = client.model("seg-t")["versions"]
        assert [(version["version"], version["aliases"]) for version in versions] == [("1", ["best", "released"])]
        assert versions[0]["tags"]["segfleet.format"] == "reference"


def test_an_mmseg_checkpoint_predicts_what_the_plain_implementation_does(
    place: Place, mmseg: Path, tmp_path: Path
) -> None:
    made = place.json("models", "import", "--format", "mmseg", str(mmseg), "--name", "seg-s", "--alias", "released")
    assert (made["taken_over"]["class_names"], made["taken_over"]["assumed"]) == (NAMES, [])
    pixels = picture(tmp_path / "street.png")
    state = random_mmseg_state(decoder="linear", patch=PATCH, classes=5)
    plain = segment_mmseg(pixels, state, patch=PATCH, stored_grid=GRID, heads=3)
    assert np.mean(predicted(place, "seg-s@released", tmp_path) == plain.argmax(1)[0].numpy()) > 0.999
    assert Image.open(tmp_path / "out" / "street.png").getpalette()[:6] == [0, 0, 200, 9, 0, 200]  # type: ignore[index]


def test_a_failed_import_leaves_nothing(place: Place, mmseg: Path, tmp_path: Path) -> None:
    document = torch.load(mmseg, weights_only=True)
    document["state_dict"]["neck.weight"] = torch.zeros(1)
    torch.save(document, tmp_path / "other.pth")
    runs = place.imports()
    done = place.run("models", "import", "--format", "mmseg", str(tmp_path / "other.pth"), "--name", "broken")
    assert (done.returncode, done.stdout) == (1, "")
    assert "other.pth: the checkpoint is not the model it says it is; 1 unknown: neck.weight" in done.stderr
    assert "Traceback" not in done.stderr
    with client_of(place.home, place.port) as client:
        assert "broken" not in {model["name"] for model in client.models()}
    assert place.imports() == runs


def test_what_broke_off_before_the_registry_is_gone_on_with(place: Place, mmseg: Path) -> None:
    """The model was logged; the next try registers that one."""
    imported = read_checkpoint("mmseg", mmseg)
    imported = replace(imported, short_side=SIDE + 1)  # another content than the other tests'
    arguments = imported, classes_of(imported), "later", None, {"segfleet.format": "mmseg"}
    runs, before = place.imports(), mlflow.get_tracking_uri()
    with client_of(place.home, place.port) as client, pytest.MonkeyPatch.context() as patch:
        try:
            patch.setattr(client, "register_model", refusing)
            with pytest.raises(ServiceError, match="just went away"):
                register_import(client, *arguments)
            assert "later" not in {model["name"] for model in client.models()}
            patch.undo()
            made = [register_import(client, *arguments) for _ in range(2)]
        finally:
            mlflow.set_tracking_uri(before)
    assert place.imports() == runs + 1
    assert made[0] == made[1]
    assert (made[0]["name"], made[0]["version"], made[0]["alias"]) == ("later", "1", None)


def refusing(*_: Any, **__: Any) -> None:
    raise ServiceError("it just went away")
