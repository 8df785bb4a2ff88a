from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml

from registered import make_pulled_model
from segfleet.errors import ModelError
from segfleet_jobs.registered_model import fetch_registered, load_registered
from segfleet_models.inference import WindowConfig


def test_a_pulled_model_is_read_without_running_any_of_its_code(tmp_path: Path) -> None:
    window = WindowConfig(32, 16, short_side=40, scales=(1.0, 1.5), flip=True)
    folder = make_pulled_model(tmp_path / "model", window=window)
    (folder / "code").mkdir()
    (folder / "code" / "segfleet_models.py").write_text("raise SystemExit('run')")
    loaded = load_registered(folder)
    assert (loaded.source, loaded.run_id) == ("tiny/3", "run7")
    assert loaded.stored.window == window
    assert loaded.stored.class_names == ("ground", "red", "green")
    assert loaded.stored.palette[0] == (0, 255, 0)
    assert not loaded.stored.model.training
    again = fetch_registered(str(folder)).stored.model.state_dict()
    assert all(torch.equal(value, again[key]) for key, value in loaded.stored.model.state_dict().items())


def test_a_model_of_no_registry_is_called_by_its_folder(tmp_path: Path) -> None:
    folder = make_pulled_model(tmp_path / "mine")
    (folder / "registered_model_meta").unlink()
    assert load_registered(folder).source == "mine"


def test_what_is_no_model_is_said(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"MLmodel: .*No such file"):
        fetch_registered(str(tmp_path))
    folder = make_pulled_model(tmp_path / "model")
    description = yaml.safe_load((folder / "MLmodel").read_text())
    (folder / "MLmodel").write_text("flavors: {sklearn: {}}")
    with pytest.raises(ModelError, match="not made by segfleet: no 'python_function'"):
        load_registered(folder)
    description["flavors"]["python_function"]["artifacts"]["weights"]["path"] = "../other.safetensors"
    (folder / "MLmodel").write_text(yaml.safe_dump(description))
    with pytest.raises(ModelError, match=r"points to '\.\./other\.safetensors' outside"):
        load_registered(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"class_names": ["a"]}, "1 class names and 3 colours for 3 classes"),
        ({"window": {"window": 3}}, "describes no model"),
        ({"model": {"backbone": "x"}}, "incomplete model settings"),
        ({"palette": [[1, 2]]}, "not enough values"),
        ({"ignore_index": float("inf")}, "describes no model"),
    ],
)
def test_a_damaged_description_is_said(change: dict[str, object], message: str, tmp_path: Path) -> None:
    folder = make_pulled_model(tmp_path / "model")
    path = folder / "artifacts" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ModelError, match=f"cannot be loaded: .*{message}"):
        load_registered(folder)


def test_a_bottomless_description_is_said(tmp_path: Path) -> None:
    folder = make_pulled_model(tmp_path / "model")
    (folder / "artifacts" / "config.json").write_text("[" * 100_000)
    with pytest.raises(ModelError, match="describes no model"):
        load_registered(folder)


def test_damaged_weights_are_said(tmp_path: Path) -> None:
    folder = make_pulled_model(tmp_path / "model")
    (folder / "artifacts" / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(ModelError, match="cannot be read as weights"):
        load_registered(folder)
