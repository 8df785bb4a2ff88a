from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from registered import make_pulled_model
from segfleet.errors import DataError, SettingsError
from segfleet_jobs import export
from segfleet_jobs.registered_model import load_registered
from segfleet_models.exported import PicturesToLabels, compare
from segfleet_models.inference import WindowConfig, predict, predict_probabilities

# Tracing takes seconds.
slow = pytest.mark.integration


def run(folder: Path, *arguments: object) -> int:
    return export.main([str(folder), *map(str, arguments)])


@pytest.mark.parametrize("protocol", ["reference", "mmseg"])
@pytest.mark.parametrize("size", [(32, 32), (30, 30)])  # whole patches or not
def test_one_call_gives_what_one_window_gives(protocol: Any, size: tuple[int, int], tmp_path: Path) -> None:
    window = WindowConfig(size[0], size[0], protocol=protocol)
    stored = load_registered(make_pulled_model(tmp_path / "model", window=window)).stored
    pictures = torch.randint(0, 256, (2, *size, 3), dtype=torch.uint8)
    with torch.no_grad():
        labels, logits = PicturesToLabels(stored.model, protocol)(pictures)
    assert labels.dtype == torch.uint8
    for picture, own_labels, own_logits in zip(pictures, labels, logits, strict=True):
        assert (own_labels == predict(stored.model, picture, window)).float().mean() > 0.999
        expected = predict_probabilities(stored.model, picture, window).permute(2, 0, 1)
        torch.testing.assert_close(own_logits.softmax(0), expected, rtol=0, atol=1e-5)


def test_a_difference_is_found(tmp_path: Path) -> None:
    module = PicturesToLabels(load_registered(make_pulled_model(tmp_path / "model")).stored.model)
    assert compare(module, module, (16, 24)).holds

    def wrong(pictures: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        labels, logits = module(pictures)
        return labels, logits + (0.5 if len(pictures) == 3 else 0)

    parity = compare(module, wrong, (16, 24))
    assert parity.max_difference == pytest.approx(0.5, abs=1e-3)
    assert not parity.holds


def test_a_file_that_differs_is_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def write(module: PicturesToLabels, size: object, path: Path) -> Any:
        path.write_bytes(b"file")
        return lambda pictures: tuple(2 * part for part in module(pictures))

    monkeypatch.setattr(export, "_write_torch", write)
    folder, out = make_pulled_model(tmp_path / "model"), tmp_path / "out"
    assert run(folder, "--format", "torch", "--out", out / "m.pt2", "--size", "16x16") == 2
    assert "the exported model differs from the model by up to" in capsys.readouterr().err
    assert list(out.iterdir()) == []


def test_what_cannot_be_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_pulled_model(tmp_path / "model")
    (tmp_path / "m.onnx.json").touch()
    assert run(folder, "--out", tmp_path / "m.onnx") == 1
    assert "m.onnx.json' exists; choose another --out" in capsys.readouterr().err
    for size in ("512", "0x4", "ax4"):
        with pytest.raises(SystemExit):
            run(folder, "--out", tmp_path / "n.onnx", "--size", size)
        assert f"'{size}' is no size" in capsys.readouterr().err
    monkeypatch.setattr(export, "_NEEDED_FOR_ONNX", ("no_such_package",))
    with pytest.raises(SettingsError, match=r"needs no_such_package.*pip install '\.\[export\]'"):
        export.export_model(load_registered(folder), "onnx", tmp_path / "n.onnx", None)


@slow
@pytest.mark.parametrize("decoder", ["linear", "mask"])
def test_onnx_gives_what_the_model_gives(
    decoder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_pulled_model(tmp_path / "model", decoder=decoder)
    out = tmp_path / "m.onnx"
    assert run(folder, "--out", out, "--size", "30x40", "--json") == 0
    document = json.loads(capsys.readouterr().out)
    assert document.pop("file") == str(out)
    assert document == json.loads((tmp_path / "m.onnx.json").read_text())
    assert document["model"] == "tiny/3"
    assert document["class_names"] == ["ground", "red", "green"]
    assert document["outputs"]["logits"] == "float32 (N, 3, 30, 40)"
    assert document["parity"]["max_difference"] < 1e-3
    # As docs/predicting.md shows it.
    text = (Path(__file__).parents[3] / "docs" / "predicting.md").read_text(encoding="utf-8")
    (snippet,) = [part.split("```")[0] for part in text.split("```python\n")[1:] if "onnxruntime" in part]
    monkeypatch.chdir(tmp_path)
    out.rename("camvid.onnx")
    (tmp_path / "m.onnx.json").rename("camvid.onnx.json")
    names: dict[str, Any] = {}
    pictures = np.random.default_rng(0).integers(0, 256, (4, 30, 40, 3), np.uint8)
    exec(snippet, names | {"pictures": pictures}, names)
    with torch.no_grad():
        labels, _ = PicturesToLabels(load_registered(folder).stored.model)(torch.from_numpy(pictures))
    assert (names["labels"] == labels.numpy()).mean() > 0.999
    assert names["commonest"] in ("ground", "red", "green")


@slow
@pytest.mark.parametrize("decoder", ["linear", "mask"])
def test_an_exported_program_takes_any_number_of_pictures(decoder: str, tmp_path: Path) -> None:
    folder = make_pulled_model(tmp_path / "model", decoder=decoder)
    out = tmp_path / "m.pt2"
    assert run(folder, "--format", "torch", "--out", out) == 0
    program = torch.export.load(out).module()
    for batch in (1, 2, 5):
        labels, logits = program(torch.zeros(batch, 32, 32, 3, dtype=torch.uint8))
        assert labels.shape == (batch, 32, 32)
        assert logits.shape == (batch, 3, 32, 32)


def test_logits_that_are_no_numbers_are_never_alike(tmp_path: Path) -> None:
    stored = load_registered(make_pulled_model(tmp_path / "model")).stored
    module = PicturesToLabels(stored.model, stored.window.protocol).eval()

    def broken(pictures: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        labels, logits = module(pictures)
        return labels, logits * float("nan")

    assert not compare(module, broken, (32, 32)).holds


def test_a_folder_as_the_file_to_write_is_refused(tmp_path: Path) -> None:
    registered = load_registered(make_pulled_model(tmp_path / "model"))
    for folder in (tmp_path, Path()):
        with pytest.raises(DataError, match="is a folder"):
            export.export_model(registered, "torch", folder, None)
