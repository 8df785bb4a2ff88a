"""One document laid over another, as a function and on the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from segfleet.cli.main import app
from segfleet.spec.document import apply_overlay


@pytest.mark.parametrize(
    ("document", "overlay", "result"),
    [
        # The examples of RFC 7396, appendix A, that are mappings.
        ({"a": "b"}, {"a": "c"}, {"a": "c"}),
        ({"a": "b"}, {"b": "c"}, {"a": "b", "b": "c"}),
        ({"a": "b"}, {"a": None}, {}),
        ({"a": "b", "b": "c"}, {"a": None}, {"b": "c"}),
        ({"a": ["b"]}, {"a": "c"}, {"a": "c"}),
        ({"a": "c"}, {"a": ["b"]}, {"a": ["b"]}),
        ({"a": {"b": "c"}}, {"a": {"b": "d", "c": None}}, {"a": {"b": "d"}}),
        ({"a": [{"b": "c"}]}, {"a": [1]}, {"a": [1]}),
        ({"e": None}, {"a": 1}, {"e": None, "a": 1}),
        ({}, {"a": {"bb": {"ccc": None}}}, {"a": {"bb": {}}}),
        ({"a": "foo"}, {"a": {"b": 1}}, {"a": {"b": 1}}),
    ],
)
def test_an_overlay_is_a_merge_patch(document: dict[str, Any], overlay: dict[str, Any], result: dict[str, Any]) -> None:
    before = json.dumps([document, overlay])
    laid = apply_overlay(document, overlay)
    assert laid == result
    for value in laid.values():
        if isinstance(value, list):
            value.append("changed")
    assert json.dumps([document, overlay]) == before


@pytest.fixture
def files(tmp_path: Path) -> tuple[str, str]:
    """A spec of a training and an overlay."""
    spec, overlay = tmp_path / "spec.yaml", tmp_path / "small.yaml"
    spec.write_text("kind: train\nname: mine\ndata: {shards: /data}\nmodel: {variant: seg-s/16}\noptim: {lr: 0.5}\n")
    overlay.write_text("train: {steps: 7, crop: 64}\neval: {window: 64, stride: 64}\noptim: null\n")
    return str(spec), str(overlay)


def test_check_lays_overlays_over_the_spec_before_single_values(
    files: tuple[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SEGFLEET_HOME", str(tmp_path / "home"))
    spec, overlay = files
    arguments = ["check", spec, "--overlay", overlay, "--set", "train.steps=9", "--json"]
    answer = CliRunner().invoke(app, arguments)
    assert answer.exit_code == 0, answer.output
    resolved = json.loads(answer.stdout)["spec"]
    assert (resolved["train"]["steps"], resolved["train"]["crop"], resolved["optim"]["lr"]) == (9, 64, 0.001)


def test_an_overlay_that_is_none_is_named(files: tuple[str, str], tmp_path: Path) -> None:
    (tmp_path / "list.yaml").write_text("- 1\n")
    answer = CliRunner().invoke(app, ["check", files[0], "--overlay", str(tmp_path / "list.yaml")])
    assert answer.exit_code != 0
    assert "list.yaml" in str(answer.exception or answer.output)
