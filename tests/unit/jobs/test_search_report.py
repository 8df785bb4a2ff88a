"""The report of a search: whole for any kind of space and any state, and honest where there is nothing to show."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from mlflow.exceptions import MlflowException
from PIL import Image

from searches import search_job, trial_document
from segfleet.errors import ServiceError
from segfleet_jobs import search_charts
from segfleet_jobs.paper_table import Data
from segfleet_jobs.report_page import Page
from segfleet_jobs.search_charts import Line, Point, draw_importance, draw_learning, draw_map, draw_speed
from segfleet_jobs.search_importance import importance
from segfleet_jobs.search_material import gather_search
from segfleet_jobs.search_parallel import draw_parallel
from segfleet_jobs.search_report import key_figures, write_search_report
from segfleet_jobs.search_variables import Variable, variables
from segfleet_models.class_sizes import group_miou, size_groups
from segfleet_pipelines.reader import SampleIndex
from training import make_dataset

HOSTILE = "<script>alert(1)</script> $x_{\\frac &\"'"
GRID = {"model.patch_size": [16, 32], "model.backbone": ["vit_tiny_patch16_384", "vit_small_patch16_384"]}


def document(space: dict[str, Any], shards: str = "/nowhere", **search: Any) -> dict[str, Any]:
    base = {"recipe": "ade20k", "data": {"shards": shards}, "model": {"variant": "seg-s/16"}}
    return {"kind": "search", "name": "tiny", "base": base, "space": space, "search": search}


@pytest.fixture(autouse=True)
def _small_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search_charts, "DPI", 40)


class NoMlflow:
    """Tracks nothing, and is asked for nothing."""


class OneRun:
    """Every trial's run, with the IoU of classes."""

    def __init__(self, iou: dict[str, float]) -> None:
        self._metrics = {f"val_iou/{name}": value for name, value in iou.items()}

    def get_run(self, run_id: str) -> Any:
        assert run_id == "run7"
        return SimpleNamespace(data=SimpleNamespace(metrics=self._metrics))


def written(
    job: dict[str, Any], trials: Sequence[dict[str, Any]], out: Path, client: Any = None, mode: str = "max"
) -> tuple[dict[str, Any], Page, str]:
    found = {"trials": list(trials), "metric": "val/miou", "mode": mode}
    document, page = write_search_report(job, found, client or NoMlflow(), out, lambda _: None)
    html = (out / "report.html").read_text(encoding="utf-8")
    assert json.loads((out / "report.json").read_text()) == json.loads(json.dumps(document))
    for name, path in document["files"].items():
        if name not in ("report", "document"):
            with Image.open(path) as picture:
                assert picture.format == "PNG"
                drawn = np.asarray(picture.convert("RGB"))
            assert 0.003 < (drawn < 250).any(axis=2).mean() < 0.95
    assert html.count("<img ") == len(document["files"]) - 2
    return document, page, html


def grid_trials(skip: int | None = None) -> list[dict[str, Any]]:
    pairs = [(patch, backbone) for patch in GRID["model.patch_size"] for backbone in GRID["model.backbone"]]
    params = [{"model.patch_size": patch, "model.backbone": backbone} for patch, backbone in pairs]
    return [trial_document(i, p, 0.1 * i) for i, p in enumerate(params, start=1) if i != skip]


def test_a_finished_search_is_shown_whole(tmp_path: Path) -> None:
    trials = grid_trials(skip=3)
    trials.append(trial_document(5, trials[0]["params"], 0.6, kind="final"))
    result = {"measured": "one picture at a time", "model": {"name": "m", "version": 2, "alias": "candidate"}}
    document_, page, html = written(search_job(document(GRID), result=result), trials, tmp_path)
    assert {"map", "learning", "speed"} <= set(document_["files"])
    figures = dict(page.figures)
    assert figures["best val/miou"] == "0.4000 at step 100"
    assert figures["trials"] == "3 succeeded"
    assert figures["worker-hours of all"] == "12"
    assert figures["registered as"] == "m/2 @candidate"
    board = page.sections[0].tables[0]
    assert [row[1] for row in board.rows] == ["4", "2", "1"]
    assert sorted(row[5] for row in board.rows) == ["1", "2", "3"]
    assert [row[6] for row in board.rows] == ["1", "2", "3"]
    assert board.marked == {0}
    assert "one picture at a time" in html
    assert page.sections[0].tables[1].rows[0][1] == "final"
    assert "4 trials" not in document_["missing"]["Importance of the variables"]
    assert "3 trials have a comparable value" in document_["missing"]["Importance of the variables"]


@pytest.mark.parametrize(
    ("trials", "missing"),
    [
        ([], {"Leaderboard": "no trial has begun yet", "Learning curves": "no trial has been validated yet"}),
        (
            [trial_document(i, {"optim.lr": i / 100}, None, state="failed", why=HOSTILE) for i in (1, 2)],
            {"Speed and value": "no trial has both a value and a measured speed"},
        ),
        ([trial_document(1, {"optim.lr": 0.01}, 0.3)], {"Choices and values": "fewer than two trials differ"}),
        ([trial_document(1, {"optim.lr": 0.01}, None, state="running", step=7)], {"Learning curves": "no trial"}),
    ],
    ids=["nothing", "all failed", "one", "running"],
)
def test_what_there_is_not_is_said(trials: list[dict[str, Any]], missing: dict[str, str], tmp_path: Path) -> None:
    job = search_job(document({"optim.lr": [0.01, 0.02]}), state="running", result=None)
    document_, _, html = written(job, trials, tmp_path)
    for title, reason in missing.items():
        assert reason in document_["missing"][title]
    assert "<script>" not in html
    assert "Importance of the variables" in document_["missing"]


def test_numbers_that_are_none_are_passed_over(tmp_path: Path) -> None:
    trials = [trial_document(i, {"optim.lr": 0.01 * i}, 0.1 * i) for i in (1, 2, 3)]
    trials[0]["reports"][1] |= {"value": None, "miou": None}
    trials[1] |= {"images_per_s": None, "parameters": None, "peak_memory_mib": None}
    trials[2]["reports"][-1] |= {"value": None, "miou": None}
    document_, page, _ = written(search_job(document({"optim.lr": [0.01, 0.02, 0.03]})), trials, tmp_path)
    assert set(document_["files"]) >= {"parallel", "learning", "speed"}
    assert [row[7:10] for row in page.sections[0].tables[0].rows][1] == ("-", "-", "-")


def test_what_others_wrote_is_no_markup_and_no_mathematics(tmp_path: Path) -> None:
    space = {"model.pretrained": [f"/w/{HOSTILE}", "/w/$y^$"], "optim.lr": [0.01, 0.02]}
    params = [{"model.pretrained": p, "optim.lr": lr} for p in space["model.pretrained"] for lr in (0.01, 0.02)]
    trials = [trial_document(i, p, 0.1 * i, why=HOSTILE) for i, p in enumerate(params, start=1)]
    _, _, html = written(search_job(document(space)), trials, tmp_path)
    assert "<script>" not in html
    assert "&lt;script&gt;" in html


def test_two_hundred_trials_of_many_variables(tmp_path: Path) -> None:
    space = {
        "optim.lr": {"min": 1e-5, "max": 0.1, "log": True},
        "model.variant": ["seg-ti/16", "seg-s/16", "seg-s/32", "seg-b/32"],
        "model.drop_path": [0.0, 0.1, 0.2],
    }
    lot = np.random.default_rng(0)
    trials = []
    for number in range(1, 201):
        rate, depth = float(10 ** lot.uniform(-5, -1)), float(lot.choice([0.0, 0.1, 0.2]))
        params = {"optim.lr": rate, "model.variant": str(lot.choice(space["model.variant"])), "model.drop_path": depth}
        value = 0.5 + 0.05 * math.log10(rate) - 0.1 * depth
        one = trial_document(number, params, value, images_per_s=float(10 ** lot.uniform(1, 3)))
        if number % 5 == 0:
            one |= {"state": "stopped", "why": "asha", "reports": one["reports"][:2]}
        trials.append(one)
    job = search_job(document(space, algorithm="random", trials=200))
    document_, page, _ = written(job, trials, tmp_path)
    shares = document_["importance"]["shares"]
    assert set(shares) == {"optim.lr", "model", "patch size", "model.drop_path"}
    assert shares["optim.lr"] > 0.8
    assert document_["importance"]["explained"] > 0.8
    assert document_["importance"]["trials"] == 160
    assert "have no name here" in next(s for s in page.sections if s.title == "Speed and value").pictures[0].caption


def test_less_is_better_where_the_search_says_so() -> None:
    found = {"trials": grid_trials(), "metric": "val/miou", "mode": "min"}
    material = gather_search(search_job(document(GRID, mode="min")), found, NoMlflow(), lambda _: None)  # type: ignore[arg-type]
    assert dict(key_figures(material))["best val/miou"].startswith("0.1000")
    assert [standing.trial["number"] for standing in material.standings] == [1, 2, 3, 4]


def test_small_medium_and_large_come_from_the_run_s_classes(tmp_path: Path) -> None:
    shards = make_dataset(tmp_path / "boxes", num_samples=8)
    iou = {"ground": 0.9, "red": 0.3, "green": 0.5, "blue": 0.1}
    job = search_job(document({"model.dropout": [0.0, 0.1]}, shards))
    trials = [trial_document(i, {"model.dropout": d}, 0.4, mlflow_run="run7") for i, d in ((1, 0.0), (2, 0.1))]
    trials[1] |= {"state": "stopped", "step": 50}
    found = {"trials": trials, "metric": "val/miou", "mode": "max"}
    first, second = gather_search(job, found, OneRun(iou), lambda _: None).runs  # type: ignore[arg-type]
    groups = size_groups(SampleIndex.load(shards, "train").class_pixels)
    small, medium, large = group_miou(list(iou.values()), groups)
    assert first.figures == {
        "miou": 0.4,
        "small": pytest.approx(small),
        "medium": pytest.approx(medium),
        "large": pytest.approx(large),
        "images_per_s": 10.0,
    }
    assert first.data == Data("raw", 5)
    assert (second.figures, second.missing) == ({}, "missing: stopped at step 50 of 100")


def test_a_tracking_server_that_is_away_is_asked_once(tmp_path: Path) -> None:
    class Away:
        num_asked = 0

        def get_run(self, _: str) -> Any:
            self.num_asked += 1
            raise MlflowException("nobody there")

    job = search_job(document({"model.dropout": [0.0, 0.1]}, make_dataset(tmp_path / "boxes", num_samples=8)))
    trials = [trial_document(i, {"model.dropout": d}, 0.4, mlflow_run="run7") for i, d in ((1, 0.0), (2, 0.1))]
    away = Away()
    found = gather_search(job, {"trials": trials, "metric": "val/miou", "mode": "max"}, away, lambda _: None)  # type: ignore[arg-type]
    assert away.num_asked == 1
    assert found.missing["classes by size"] == "nobody there"
    assert [run.figures["miou"] for run in found.runs] == [0.4, 0.4]


def test_a_spec_of_another_version_is_refused(tmp_path: Path) -> None:
    job = search_job(document(GRID)) | {"spec": {"kind": "search", "novelty": 1}}
    with pytest.raises(ServiceError, match="submitted to another version"):
        written(job, [], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def of(name: str, *values: Any) -> Variable:
    return Variable(name, values, tuple(dict.fromkeys(values)))


@pytest.mark.parametrize(
    "draw",
    [
        lambda path: draw_map(of("a", 1, 2), of(HOSTILE, HOSTILE * 3, "y"), {}, "m", path),
        lambda path: draw_map(of("a", 1), of("b", 2), {(0, 0): (0.5, "0.5")}, HOSTILE, path, is_less_better=True),
        lambda path: draw_map(of("a", *range(12)), of("b", *"abcdefghijkl"), {(3, 4): (0.1, "x")}, "m", path),
        lambda path: draw_parallel([of("a", 1)], [None], "m", path),
        lambda path: draw_parallel([of(HOSTILE * 4, *range(1, 40))], [0.1] * 39, "m", path),
        lambda path: draw_parallel([of(str(i), 1, None) for i in range(14)], [0.1, 0.2], "m", path),
        lambda path: draw_learning([Line(HOSTILE, [1, 2], [0.0, 0.0], [math.nan, 0.1])], "m", "min", path),
        lambda path: draw_importance({HOSTILE: 0.7, "b": 0.3}, path),
        lambda path: draw_speed([Point(HOSTILE, 0.0, 0.1, True)], "m", path),
        lambda path: draw_speed([Point(HOSTILE, 5.0, 0.1, True)] * 30, HOSTILE, path, is_less_better=True),
    ],
)
def test_a_chart_of_odd_things_is_a_picture(draw: Any, tmp_path: Path) -> None:
    draw(tmp_path / "chart.png")
    with Image.open(tmp_path / "chart.png") as picture:
        assert min(picture.size) > 50


def test_importance_is_not_made_up() -> None:
    lot = np.random.default_rng(1)
    noise = [of("a", *lot.permutation(20).tolist()), of("b", *lot.permutation(20).tolist())]
    told = importance(noise, lot.normal(size=20).tolist())
    assert (told.shares, "does not foretell" in told.why) == ({}, True)
    assert "same value" in importance(noise, [0.5] * 20).why
    assert "fewer than two variables" in importance(noise[:1], [0.5] * 20).why
    assert (
        "7 trials have a comparable value; with 2 variables it takes at least 8"
        in importance(noise, [0.1 * i if i < 7 else None for i in range(20)]).why
    )


def names(space: dict[str, Any], params: list[dict[str, Any]]) -> list[str]:
    from segfleet.spec.kinds import SearchSpec

    spec = SearchSpec.model_validate(search_job(document(space))["spec"] | {}, strict=False)
    return [variable.name for variable in variables(spec, params)]


def test_what_follows_another_choice_is_no_variable() -> None:
    joint = {"train.crop, eval.window": [[512, 512], [640, 640]]}
    assert names(joint, [{"train.crop": 512, "eval.window": 512}, {"train.crop": 640, "eval.window": 640}]) == [
        "train.crop"
    ]
    both = {"model.backbone, model.patch_size": [["vit_a", 16], ["vit_a", 32], ["vit_b", 16]]}
    chosen = [
        dict(zip(("model.backbone", "model.patch_size"), pair, strict=True)) for pair in next(iter(both.values()))
    ]
    assert names(both, chosen) == ["model.backbone", "model.patch_size"]
    cases = {
        "model.variant": ["seg-s/16", "seg-ti/16"],
        "optim.lr": {"given": "model.variant", "cases": {"seg-s/16": [0.01]}},
        "model.drop_path": {"given": "model.variant", "cases": {"seg-s/16": [0.0, 0.2]}},
    }
    tried = [{"model.variant": "seg-s/16", "optim.lr": 0.01, "model.drop_path": p} for p in (0.0, 0.2)]
    assert names(cases, [*tried, {"model.variant": "seg-ti/16"}]) == ["model.variant", "model.drop_path"]


def test_a_variant_of_model_and_patch_size_is_two_variables() -> None:
    space = {"model.variant": ["seg-ti/16", "seg-s/16", "seg-s/32"]}
    assert names(space, [{"model.variant": value} for value in space["model.variant"]]) == ["model", "patch size"]
    alone = {"model.variant": ["seg-ti/16", "deeplabv3plus-r50"]}
    assert names(alone, [{"model.variant": value} for value in alone["model.variant"]]) == ["model.variant"]
