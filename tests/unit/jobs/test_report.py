"""A report as a whole, of a training that MLflow, a registry and a dataset know, and of one that they do not."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from mlflow.exceptions import MlflowException
from PIL import Image

from registered import make_pulled_model
from segfleet.errors import DataError, ModelError, ServiceError
from segfleet.spec.resolve import resolve_spec, to_document
from segfleet_jobs.registered_model import RegisteredModel, load_registered
from segfleet_jobs.report import write_report
from segfleet_jobs.report_material import CURVES, Material, Sources, gather
from segfleet_jobs.report_sections import attention_section, embeddings_section, spec_section, time_section
from training import make_dataset

NAMES = ("ground", "red", "green", "blue")


class FakeMlflow:
    """One run: its curves, tags and files."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "predictions").mkdir(parents=True)
        for step in (5, 10, 15, 20, 25):
            Image.new("RGB", (40, 30), (step, 0, 0)).save(folder / "predictions" / f"step-{step:08d}.png")
        document = {"step": 20, "class_names": NAMES, "matrix": (np.eye(4, dtype=int) * 8 + 1).tolist()}
        (folder / "confusion.json").write_text(json.dumps(document))
        kept = folder / "evaluation" / "job-aaaaaaaa"
        kept.mkdir(parents=True)
        matrix = (np.eye(4, dtype=int) * 4 + 1).tolist()
        (kept / "scores.json").write_text(json.dumps({"class_names": NAMES, "confusion": matrix}))
        Image.new("RGB", (40, 30), (9, 9, 9)).save(kept / "worst.png")

    def get_run(self, _: str) -> Any:
        return SimpleNamespace(data=SimpleNamespace(tags={"segfleet.dataset": "boxes"}))

    def get_metric_history(self, _: str, key: str) -> list[Any]:
        assert key in CURVES.values()
        return [SimpleNamespace(step=step, value=0.1 * step) for step in (20, 5, 10)]

    def list_artifacts(self, _: str, path: str) -> list[Any]:
        return [SimpleNamespace(path=f"{path}/{file.name}") for file in (self.folder / path).iterdir()]

    def download_artifacts(self, _: str, path: str, __: str) -> str:
        if not (self.folder / path).exists():
            raise MlflowException(f"no artifact {path}")
        return str(self.folder / path)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_dataset(tmp_path_factory.mktemp("boxes"), num_samples=8)


def make_job(shards: str, kind: str = "train", **result: Any) -> dict[str, Any]:
    document = {"kind": kind, "name": "tiny", "data": {"shards": shards}}
    if kind == "train":
        document |= {"recipe": "camvid", "optim": {"lr": 0.007}}
    else:
        document["model"] = "tiny@latest"
    scores = {
        "miou": 0.4321,
        "baseline_miou": 0.1,
        "pixel_accuracy": 0.8,
        "mean_accuracy": 0.6,
        "num_samples": 5,
        "iou": {"ground": 0.9, "red": 0.3, "green": None, "blue": 0.1},
        "mlflow_run": "run7",
    }
    training = {
        "best_step": 20,
        "num_parameters": 1234567,
        "skipped_steps": 0,
        "seconds": {"data": 1.0, "step": 9.0},
        "model": {"name": "tiny", "version": 3, "alias": "latest"},
    }
    evaluation = {
        "model_version": "tiny/3",
        "dataset": "boxes",
        "split": "val",
        "protocol": {"label": "ss", "scales": [1.0], "flip": False},
        "boundary_miou": None,
        "boundary_iou": dict.fromkeys(NAMES),
        **{f"miou_{size}": 0.25 for size in ("small", "medium", "large")},
        "size_groups": {"small": ["red"], "medium": ["green"], "large": ["ground", "blue"]},
        "sizes_from": "train",
        "seconds": 2.5,
        "samples_per_s": 2.0,
    }
    return {
        "id": "job-aaaaaaaa",
        "name": "tiny",
        "kind": kind,
        "state": "SUCCEEDED",
        "spec": to_document(resolve_spec(document)),
        "result": {**scores, **(training if kind == "train" else evaluation), **result},
    }


def make_sources(folder: Path, **changes: Any) -> Sources:
    model = load_registered(make_pulled_model(folder / "model", NAMES, **changes))

    def fetch(reference: str) -> RegisteredModel:
        assert reference == "tiny/3"
        return model

    return Sources(FakeMlflow(folder / "run"), fetch, folder)  # type: ignore[arg-type]


def test_a_training_gets_all_parts(shards: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sources = make_sources(tmp_path, decoder="mask")
    document, page = write_report(make_job(shards), sources, tmp_path / "out")
    html = (tmp_path / "out" / "report.html").read_text()
    assert document["missing"] == {"Beside the paper": "the paper has no figures for 'boxes'"}
    steps = {"predictions-5", "predictions-10", "predictions-20"}
    drawn = {"curves", "classes", "confusion", "time", "attention-1", "attention-2", "embeddings"} | steps
    assert set(document["files"]) == {"report", "document"} | drawn
    for name in drawn:
        with Image.open(document["files"][name]) as picture:
            picture.load()
    assert html.count("<img ") == len(drawn)
    assert html.count("data:image/png;base64,") == len(drawn)
    assert "0.4321 at step 20" in html
    assert json.loads((tmp_path / "out" / "report.json").read_text()) == json.loads(json.dumps(document))
    assert document["largest_confusions"][0]["share_of_class"] == pytest.approx(1 / 12)
    assert dict(page.figures)["training samples/s (median)"] == "1.00"
    told = capsys.readouterr()
    assert "attention maps (5 of 9)" in told.err
    assert told.out == ""


def test_the_time_of_the_whole_job_is_a_table_with_its_sum(shards: str, tmp_path: Path) -> None:
    goodput = {"share": 0.75, "wall_s": 80.0, "first_wait_s": 1.0, "seconds": {"step": 60.0, "load": 20.0}}
    section = time_section(Material(make_job(shards) | {"goodput": goodput}), tmp_path)
    (table,) = section.tables
    assert list(table.rows) == [("step", "60.0", "75.0%"), ("load", "20.0", "25.0%"), ("all", "80.0", "100.0%")]
    assert table.title.endswith("goodput 75.0%")
    assert not time_section(Material(make_job(shards)), tmp_path).tables


def test_the_spec_is_shown_whole_with_what_is_not_default_marked(shards: str) -> None:
    changed, whole = spec_section(Material(make_job(shards))).tables
    assert [row[:2] for row in changed.rows] == [("optim.lr", "0.007")]
    assert [whole.rows[i][0] for i in whole.marked] == ["optim.lr"]
    assert len(whole.rows) > 50


def test_a_linear_decoder_has_no_embeddings(shards: str, tmp_path: Path) -> None:
    found = Material(make_job(shards), model=make_sources(tmp_path).fetch_model("tiny/3"))
    assert embeddings_section(found, tmp_path).missing == "only the mask transformer has class embeddings"


def test_what_is_not_to_be_had_is_named_with_the_reason(tmp_path: Path) -> None:
    def refuse(_: str) -> RegisteredModel:
        raise ModelError("no such model")

    job = make_job("/nowhere", mlflow_run="")
    document, _ = write_report(job, Sources(None, refuse, tmp_path), tmp_path / "out")  # type: ignore[arg-type]
    assert set(document["missing"]) == {
        "Curves",
        "Confusion",
        "Predictions",
        "Attention",
        "Class embeddings",
        "Beside the paper",
    }
    assert document["missing"]["Attention"] == "no such model"
    assert document["missing"]["Confusion"] == "the result names no MLflow run"
    assert {"classes", "time"} <= set(document["files"])


def test_without_the_dataset_attention_is_shown_on_given_pictures(tmp_path: Path) -> None:
    found = gather(make_job("/nowhere"), make_sources(tmp_path), 2, lambda _: None)
    assert "manifest.json" in attention_section(found, tmp_path, []).missing
    own = np.random.default_rng(0).integers(0, 255, (40, 50, 3), np.uint8)
    section = attention_section(found, tmp_path, [("own.png", own, None)])
    assert section.missing == ""
    assert [picture.caption for picture in section.pictures] == ["Attention on own.png."]


def test_the_attention_of_no_transformer_is_missing_with_the_reason(shards: str, tmp_path: Path) -> None:
    found = Material(make_job(shards), model=make_sources(tmp_path).fetch_model("tiny/3"))
    assert found.model is not None
    stored = replace(found.model.stored, model=torch.nn.Identity())  # type: ignore[arg-type]
    found.model = replace(found.model, stored=stored)
    section = attention_section(found, tmp_path, [("own.png", np.zeros((8, 8, 3), np.uint8), None)])
    assert "no plain ViT encoder" in section.missing


def test_an_evaluation_is_reported_without_what_only_training_has(shards: str, tmp_path: Path) -> None:
    document, page = write_report(make_job(shards, "evaluate"), make_sources(tmp_path), tmp_path / "out")
    titles = [section.title for section in page.sections]
    assert not {"Curves", "Time"} & set(titles)
    assert {"model": "tiny/3", "boundary mIoU": "-", "protocol": "ss"}.items() <= dict(page.figures).items()
    assert {"classes", "confusion", "predictions-worst", "attention-1"} <= set(document["files"])
    assert document["largest_confusions"][0]["share_of_class"] == pytest.approx(1 / 8)
    sizes = page.sections[titles.index("Sizes and boundaries")]
    assert ("large", "0.2500", "ground, blue") in sizes.tables[0].rows


def test_a_job_without_scores_and_an_unreadable_picture_are_refused(shards: str, tmp_path: Path) -> None:
    job = {"id": "job-aaaaaaaa", "kind": "prepare", "state": "SUCCEEDED", "result": {}}
    with pytest.raises(ServiceError, match="a prepare job in state SUCCEEDED; a report needs a succeeded training"):
        write_report(job, make_sources(tmp_path), tmp_path / "out")
    (tmp_path / "no.png").write_text("no picture")
    with pytest.raises(DataError, match=r"no\.png'"):
        write_report(make_job(shards), make_sources(tmp_path / "b"), tmp_path / "out", [tmp_path / "no.png"])
    assert not (tmp_path / "out").exists()
