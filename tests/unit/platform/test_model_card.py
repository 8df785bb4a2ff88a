from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

from segfleet.client import Client
from segfleet.registry.card import confusion_svg, model_card, write_card
from serving import API_TOKEN, URL, AppTransport

VERSION = {
    "name": "seg",
    "version": "3",
    "aliases": ["champion"],
    "job": "job-aaaaaaaa",
    "run_id": "r1",
    "metrics": {"miou": 0.5, "eval/boxes-val-0123/reference-ss-1/miou": 0.25},
    "tags": {"segfleet.content_id": "c1", "segfleet.spec": "{}", "segfleet.licence.weights": "apache-2.0"},
}
CONFIG = {
    "model": {"backbone": "vit_tiny", "patch_size": 16, "decoder": "mask", "num_classes": 2},
    "window": {"window": 32, "stride": 24},
    "class_names": ["sky", "[x](javascript:y) | <b>`"],
    "palette": [[1, 2, 3], [4, 5, 6]],
}


def test_a_card_tells_figures_classes_pictures_and_origin() -> None:
    card = model_card(VERSION, CONFIG, ["predictions.png"])
    assert card.startswith("# seg/3 (@champion)\n")
    assert "| boxes-val-0123 | reference-ss-1 | miou | 0.25 |" in card
    assert "| validation of the training |  | miou | 0.5 |" in card
    assert "| 0 | sky | 1, 2, 3 |" in card
    assert "![predictions.png](pictures/predictions.png)" in card
    assert "mlflow.pyfunc.load_model" in card
    assert "- licence.data: unknown" in card
    assert "- licence.weights: apache-2.0" in card
    assert "spec: {}" not in card


def test_names_from_elsewhere_are_text_in_a_card() -> None:
    card = model_card(VERSION, CONFIG, [])
    assert r"\[x\]\(javascript:y\) \| \<b\>\`" in card
    assert "## Pictures" not in card


def test_a_confusion_matrix_is_drawn() -> None:
    drawn = confusion_svg(["a<b", "c"], [[3, 1], [0, 0]])
    root = ElementTree.fromstring(drawn)
    cells = root.findall("{http://www.w3.org/2000/svg}rect")[1:]
    assert [cell.get("fill") for cell in cells] == [
        "rgb(64,64,255)",
        "rgb(191,191,255)",
        "rgb(255,255,255)",
        "rgb(255,255,255)",
    ]


def test_a_damaged_matrix_or_foreign_model_leaves_a_card(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    for text in ("{", json.dumps({"class_names": ["a"], "matrix": [["x"]]}), json.dumps({"class_names": ["a"]})):
        (tmp_path / "pictures" / "confusion.json").write_text(text)
        write_card(tmp_path, VERSION)
        assert "A model that was not made by segfleet." in (tmp_path / "README.md").read_text()
        assert not (tmp_path / "pictures" / "confusion.svg").exists()


def test_a_pulled_version_has_its_card_and_pictures(transport: AppTransport, tmp_path: Path) -> None:
    folder = Client(URL, API_TOKEN, transport=transport).pull("seg@best", tmp_path / "model")
    assert "![confusion.svg](pictures/confusion.svg)" in (folder / "README.md").read_text()
    assert "a&lt;b" in (folder / "pictures" / "confusion.svg").read_text()
    assert (folder / "MLmodel").is_file()
