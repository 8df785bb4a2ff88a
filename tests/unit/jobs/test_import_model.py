"""What is decided before an import writes anything; the rest is in the integration tests."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from segfleet.errors import DataError, ServiceError, SettingsError
from segfleet_jobs import import_model
from segfleet_jobs.imported_model import (
    Classes,
    classes_of,
    content_digest,
    served_config,
    taken_over,
    window_of,
    with_windows,
)
from segfleet_models.build import ModelConfig
from segfleet_models.convert import Imported
from segfleet_pipelines.datasets.class_table import class_table, own_palette

ASSUMED = {"pixels": "the usual", "window": "windows of 64 pixels", "short_side": "short side of 64 pixels"}


def imported(num_classes: int = 19, **changes: Any) -> Imported:
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    config = ModelConfig(
        "test_vit", 16, "mask", num_classes, 64, layer_norm_eps=1e-5, position_mode="bilinear", mean=mean, std=std
    )
    return replace(Imported(config, {}, 64, 48, 64, "cityscapes", assumed=ASSUMED), **changes)


@pytest.mark.parametrize(("dataset", "count"), [("cityscapes", 19), ("ade20k", 150), ("pascal_context", 60)])
def test_a_known_dataset_has_its_classes(dataset: str, count: int) -> None:
    classes = classes_of(imported(count, dataset=dataset))
    assert (list(classes.names), classes.origin) == (class_table(dataset).names, dataset)
    # Not as in the reference's own list, whose order is another than the labels'.
    assert dataset != "pascal_context" or classes.names[:5] == ("background", "aeroplane", "bag", "bed", "bedclothes")


def test_the_checkpoint_s_own_classes_count_more_than_the_dataset_and_the_given_ones_most(tmp_path: Path) -> None:
    own = imported(2, class_names=("a", "b"), palette=((1, 2, 3), (4, 5, 6)))
    assert classes_of(own) == Classes(("a", "b"), ((1, 2, 3), (4, 5, 6)), "the checkpoint")
    assert classes_of(replace(own, palette=None)).palette == own_palette(2)
    assert classes_of(replace(own, palette=((1, 2, 3),))).palette == own_palette(2)
    (tmp_path / "classes.yaml").write_text("names: [sky, road]")
    assert classes_of(own, str(tmp_path / "classes.yaml")).names == ("sky", "road")
    assert classes_of(imported(11), "camvid").names[0] == "sky"


@pytest.mark.parametrize(
    ("changes", "given", "message"),
    [
        ({"dataset": None}, None, "give them with --classes FILE .*ade20k"),
        ({"dataset": "../../../secret"}, None, "give them with --classes"),
        ({"num_classes": 5}, None, "scores 5 classes, but cityscapes has 19"),
        ({"num_classes": 5}, "ade20k", "scores 5 classes, but ade20k has 150"),
        ({"num_classes": 3, "class_names": ("a",)}, None, "scores 3 classes, but the checkpoint has 1"),
        ({}, "nowhere.yaml", "neither a file nor one of ade20k, camvid"),
    ],
)
def test_classes_that_nobody_knows_or_that_do_not_fit(changes: dict[str, Any], given: str | None, message: str) -> None:
    with pytest.raises(DataError, match=message):
        classes_of(imported(**changes), given)


def test_other_windows_take_the_place_of_assumed_ones() -> None:
    changed = with_windows(imported(protocol="mmseg"), 32, 16, None)
    window = window_of(changed)
    assert (window.window, window.stride, window.short_side, window.protocol) == (32, 16, 64, "mmseg")
    assert changed.assumed.keys() == {"pixels", "short_side"}
    assert with_windows(imported(), None, None, None) == imported()
    with pytest.raises(SettingsError, match=r"stride 48 must be between 1 and the window 32; see --window"):
        with_windows(imported(), 32, None, None)


def test_the_digest_is_of_weights_and_configuration(tmp_path: Path) -> None:
    for name, content in (("a", b"weights"), ("same", b"weights"), ("b", b"others")):
        (tmp_path / name).write_bytes(content)
    config = served_config(imported(), classes_of(imported()))
    digest = content_digest(tmp_path / "a", config)
    assert len(digest) == 64
    assert content_digest(tmp_path / "same", json.loads(json.dumps(config))) == digest
    assert content_digest(tmp_path / "b", config) != digest
    narrower = served_config(with_windows(imported(), 32, 32, None), classes_of(imported()))
    assert content_digest(tmp_path / "a", narrower) != digest


def test_a_person_sees_what_was_taken_over_and_what_assumed() -> None:
    text = import_model.describe(taken_over(imported(left_out=("encoder.head.bias",)), classes_of(imported())))
    for line in (
        "test_vit, patch 16, mask decoder",
        "19 from cityscapes: road, sidewalk, building, wall, fence, pole, ...",
        "mean 123.675/116.28/103.53, deviation 58.395/57.12/57.375",
        "epsilon 1e-05; positions for 64 pixels, resized bilinear",
        "short side 64, window 64, stride 48, as reference",
        "left out: encoder.head.bias",
        "assumed     the usual; windows of 64 pixels; short side of 64 pixels",
    ):
        assert line in text


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The command line of an import that must not come as far as the service."""
    monkeypatch.setattr(import_model, "Client", lambda: pytest.fail("the service was asked"))
    torch.save({"state_dict": {"a": torch.zeros(1)}}, tmp_path / "other.pth")
    return ["--format", "mmseg", str(tmp_path / "other.pth"), "--name", "seg"]


@pytest.mark.parametrize(
    ("changes", "code", "message"),
    [
        ({}, 1, "other.pth: no backbone.patch_embed"),
        ({2: "/nowhere/other.pth"}, 1, "/nowhere/other.pth: cannot be read as weights"),
        ({1: "reference"}, 1, "variant.yml: No such file"),
        ({4: "Seg!"}, 2, "--name 'Seg!'"),
        ({3: "--alias", 4: "Best", 5: "--name", 6: "seg"}, 2, "--alias 'Best'"),
    ],
)
def test_what_is_wrong_is_said_before_the_service_is_asked(
    command: list[str], changes: dict[int, str], code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = dict(enumerate(command)) | changes
    assert import_model.main([arguments[place] for place in sorted(arguments)]) == code
    out, err = capsys.readouterr()
    assert (out, "Traceback" in err) == ("", False)
    assert message in err


def test_an_unknown_format_is_wrong_use(command: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        import_model.main(["--format", "onnx", *command[2:]])
    assert caught.value.code == 2


def test_without_mlflow_nothing_is_logged() -> None:
    class Away:
        def status(self) -> dict[str, Any]:
            return {"mlflow": {"ok": False, "url": "http://127.0.0.1:1"}}

    with pytest.raises(ServiceError, match=r"MLflow at http://127\.0\.0\.1:1 does not answer"):
        import_model.register_import(Away(), imported(), classes_of(imported()), "seg", None, {})  # type: ignore[arg-type]
