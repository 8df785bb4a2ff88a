from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from file_server import file_server
from segfleet_pipelines.manifest import Manifest
from segfleet_pipelines.tool import main


def test_prepare_verify_and_inspect(
    raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["prepare", "folder", "--raw", str(raw), "--out", "out", "--processes", "1"]) == 0
    content_id = Manifest.load(tmp_path / "out").content_id
    assert content_id in capsys.readouterr().out
    assert main(["verify", "out"]) == 0
    assert "sound. 11 samples in 2 shards" in capsys.readouterr().out
    assert main(["inspect", "out", "--split", "val"]) == 0
    printed = capsys.readouterr().out
    assert "road" in printed
    assert "out-val-sheet.png" in printed
    with Image.open(tmp_path / "out-val-sheet.png") as sheet:
        assert sheet.width > 500


def test_a_dataset_elsewhere_is_inspected_like_one_here(
    shared_dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with file_server({f"mine/{path.name}": path.read_bytes() for path in shared_dataset.iterdir()}) as server:
        monkeypatch.setenv("SEGFLEET_DATA_HOSTS", server.url.removeprefix("http://"))
        monkeypatch.setenv("SEGFLEET_CACHE_DIR", str(tmp_path / "cache"))
        assert main(["inspect", f"{server.url}/mine"]) == 0
    assert "mine-train-sheet.png" in capsys.readouterr().out
    assert (tmp_path / "mine-train-sheet.png").is_file()


def test_json_is_one_document_and_nothing_else(raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "out")
    assert main(["prepare", "folder", "--raw", str(raw), "--out", out, "--processes", "1", "--json"]) == 0
    prepared = json.loads(capsys.readouterr().out)
    assert prepared["samples"] == {"train": 9, "val": 2}
    assert main(["verify", out, "--json"]) == 0
    verified = json.loads(capsys.readouterr().out)
    assert (verified["ok"], verified["content_id"]) == (True, prepared["content_id"])
    sheet = str(tmp_path / "sheet.png")
    assert main(["inspect", out, "--sheet", sheet, "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    train = summary["splits"]["train"]
    assert summary["sheet"] == sheet
    assert train["num_samples"] == 9
    assert sum(train["pixel_shares"]) + train["ignored_share"] == pytest.approx(1)
    assert train["pictures_with"] == [9, 9, 9]
    assert train["height"]["min"] <= train["height"]["median"] <= train["height"]["max"]


def test_damage_gives_exit_code_1(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (dataset / "val-000000.tar").unlink()
    assert main(["verify", str(dataset)]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "error: " in captured.err
    assert "val-000000.tar" in captured.err
    assert main(["verify", str(dataset), "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["ok"] is False
    assert main(["inspect", str(dataset), "--split", "val"]) == 1


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["verify", "/nowhere/at/all"], 1, "the folder does not exist"),
        (["verify", "pipe:touch canary"], 1, "is not supported"),
        (["prepare", "folder", "--out", "x"], 2, "raw"),
        (["prepare", "coco", "--raw", "y", "--out", "x"], 2, "dataset"),
        (["prepare", "folder", "--raw", "y", "--out", "http://host/x"], 2, "scheme 'http'"),
        (["prepare", "folder", "--raw", "/nowhere", "--out", "x", "--val-share", "2"], 2, "val_share"),
        (["prepare", "folder", "--raw", "/nowhere", "--out", "x"], 1, "/nowhere is not a folder"),
        (["prepare", "synthetic", "--out", "/proc/x"], 1, "cannot be written"),
    ],
)
def test_mistakes_get_a_message_and_no_traceback(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    code: int,
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == code
    captured = capsys.readouterr()
    assert captured.err.lstrip().startswith("error: ")
    assert message in captured.err
    assert captured.out == ""
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("arguments", [[], ["fly"], ["verify"], ["inspect", "x", "--count", "0"]])
def test_wrong_use_gives_exit_code_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2


def test_names_cannot_steer_the_terminal(raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (raw / "images" / "\x1b[2Jx.jpg").touch()
    assert main(["prepare", "folder", "--raw", str(raw), "--out", str(tmp_path / "out")]) == 1
    assert "[2Jx.jpg: no mask" in (err := capsys.readouterr().err)
    assert "\x1b" not in err


@pytest.mark.integration
def test_a_terminated_prepare_leaves_nothing_that_looks_finished(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "segfleet_pipelines.tool", "prepare", "synthetic", "--samples", "100000"]
    process = subprocess.Popen([*command, "--out", "out"], cwd=tmp_path, stderr=subprocess.DEVNULL)
    try:
        while not list(tmp_path.glob(".out.partial/*/synthetic/images/*")):
            assert process.poll() is None
            os.sched_yield()
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 1
    finally:
        process.kill()
    assert not list(tmp_path.iterdir())
