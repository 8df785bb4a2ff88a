from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from plain_model import PlainSegmenter
from segfleet.errors import SettingsError
from segfleet_jobs import bench, bench_model, measuring
from segfleet_jobs.bench import main
from segfleet_jobs.bench_model import largest_batch
from segfleet_models.build import ModelConfig, build_segmenter

SPEC = """
kind: train
name: tiny
data: {shards: none}
model: {backbone: vit_tiny_patch16_224, patch_size: 16, decoder: mask, decoder_layers: 1}
train: {steps: 5, crop: 64}
"""


@pytest.fixture
def spec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A spec's file; measuring stays in this process."""
    monkeypatch.setattr(bench, "in_fresh_process", lambda function, *args: function(*args))
    path = tmp_path / "tiny.yaml"
    path.write_text(SPEC)
    return str(path)


@pytest.mark.integration
def test_measures_forward_and_training(spec: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--spec", spec, "--size", "32", "--steps", "2", "--batch", "2", "--classes", "5", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    forward, train = document["measurements"]
    assert (forward["mode"], train["mode"]) == ("forward", "train")
    for one in (forward, train):
        assert {one[name] for name in ("model", "batch", "size", "precision")} == {spec, 2, 32, "fp32"}
        assert all(one[name] > 0 for name in ("images_per_s", "step_ms", "parameters", "gflops"))
        assert one["images_per_s"] == pytest.approx(1000 * one["batch"] / one["step_ms"])
        assert one["peak_mib"] is None or one["peak_mib"] >= 0


def test_prints_a_table_of_what_was_asked(spec: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--spec", spec, "--size", "32", "--steps", "1", "--forward", "--precision", "bf16"]) == 0
    head, row, note = capsys.readouterr().out.splitlines()
    assert head.split()[:3] == ["model", "mode", "batch"]
    assert row.split()[:3] == [spec, "forward", str(measuring.CPU_BATCH)]
    assert note.startswith("32x32 pixels, 150 classes, ")


def test_counts_multiplications_and_additions() -> None:
    model = build_segmenter(ModelConfig("vit_tiny_patch16_224", 16, "mask", 150, 32, decoder_layers=1))

    def blocks(tokens: int, width: int = 192) -> int:
        return 24 * tokens * width**2 + 4 * tokens**2 * width

    patches = 2 * 4 * 768 * 192
    decoder = 2 * 4 * 192**2 + blocks(4 + 150) + 2 * (4 + 150) * 192**2 + 2 * 4 * 150 * 192
    assert bench_model._gflops(model, 32) == pytest.approx((patches + 12 * blocks(4 + 1) + decoder) / 1e9, rel=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["seg-q/9"], "'seg-q/9' is not a variant; write seg-"),
        (["seg-ti/16", "--precision", "fp16"], "fp16 needs a GPU"),
        (["--spec", "/nowhere.yaml"], "/nowhere.yaml"),
    ],
)
def test_says_what_is_wrong(arguments: list[str], message: str, spec: str, capsys: pytest.CaptureFixture[str]) -> None:
    if torch.cuda.is_available() and "fp16" in arguments:
        pytest.skip("there is a GPU")
    assert main(arguments) == 2
    told = capsys.readouterr()
    assert message in told.err
    assert told.out == ""


def test_refuses_other_specs_and_models_that_are_none(spec: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = Path(spec)
    path.write_text("kind: prepare\nname: a\ndataset: synthetic\nout: b\n")
    assert main(["--spec", spec]) == 2
    assert "kind 'prepare'; give one of kind train" in capsys.readouterr().err
    path.write_text(SPEC.replace("vit_tiny_patch16_224", "vit_tyni_patch16_224"))
    assert main(["--spec", spec]) == 2
    assert "error: " + spec + ": 'vit_tyni_patch16_224'" in capsys.readouterr().err


@pytest.mark.parametrize("room", [1, 2, 3, 37, 64, 100, 1000])
def test_finds_the_largest_batch_that_fits(room: int) -> None:
    tried: list[int] = []

    def make(batch: int) -> bench_model.Work:
        def work() -> None:
            tried.append(batch)
            if batch > room:
                raise torch.OutOfMemoryError("CUDA out of memory")

        return work

    found = largest_batch(bench_model._fits(make))
    assert found <= room
    assert room - found <= max(1, found // 16) - (room <= 16)
    assert len(set(tried)) < 20


def test_batch_search_has_two_ends() -> None:
    assert largest_batch(lambda _: True, most=64) == 64
    with pytest.raises(SettingsError, match="not even one picture fits"):
        largest_batch(lambda _: False)


def test_the_benchmarks_plain_model_scores_alike() -> None:
    ours = build_segmenter(ModelConfig("vit_tiny_patch16_224", 16, "mask", 5, 64)).eval()
    plain = PlainSegmenter(192, 5, 64).eval()
    plain.load_state_dict(ours.state_dict())
    pixels = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        torch.testing.assert_close(plain(pixels), ours.upsample(ours(pixels), (64, 64)), atol=1e-4, rtol=1e-4)
