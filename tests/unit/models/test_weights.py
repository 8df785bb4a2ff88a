from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import timm
import torch

from segfleet_models.build import ModelConfig, build_segmenter
from segfleet_models.encoder import Encoder
from segfleet_models.segmenter import Segmenter
from segfleet_models.weights import load_encoder_weights, load_weights, save_weights


def make_model(num_classes: int = 5) -> Segmenter:
    return build_segmenter(ModelConfig("test_vit", 16, "mask", num_classes, 64))


def make_encoder() -> Encoder:
    return Encoder("test_vit", patch_size=16, img_size=64)


def test_saved_weights_come_back_bit_for_bit(tmp_path: Path) -> None:
    model, other = make_model(), make_model()
    save_weights(model, tmp_path / "model.safetensors")
    load_weights(other, tmp_path / "model.safetensors")
    assert all(torch.equal(value, other.state_dict()[key]) for key, value in model.state_dict().items())


def test_saved_weights_fit_their_own_architecture_only(tmp_path: Path) -> None:
    save_weights(make_model(), tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"model\.safetensors: .*decoder.cls_emb is \(1, 5, 64\) instead"):
        load_weights(make_model(num_classes=6), tmp_path / "model.safetensors")


@pytest.mark.parametrize("wrapper", [None, "model", "state_dict"])
def test_torch_files_of_tensors_are_read(tmp_path: Path, wrapper: str | None) -> None:
    state = timm.create_model("test_vit", num_classes=0).state_dict()
    torch.save(state if wrapper is None else {wrapper: state, "epoch": 3}, tmp_path / "backbone.pth")
    encoder = make_encoder()
    load_encoder_weights(encoder, tmp_path / "backbone.pth")
    assert torch.equal(encoder.vit.norm.weight, state["norm.weight"])
    assert torch.equal(encoder.vit.patch_embed.proj.weight, state["patch_embed.proj.weight"])


class Trap:
    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (Path("trap-was-sprung"),)


def test_a_torch_file_cannot_run_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"cls_token": Trap()}, tmp_path / "evil.pth")
    (tmp_path / "plain.pth").write_bytes(pickle.dumps(Trap(), protocol=2))
    for name in ("evil.pth", "plain.pth"):
        with pytest.raises(ValueError, match=f"{name}: cannot be read as weights"):
            load_encoder_weights(make_encoder(), tmp_path / name)
    assert not (tmp_path / "trap-was-sprung").exists()


@pytest.mark.parametrize("name", ["missing.safetensors", "missing.pth", "damaged.safetensors", "damaged.pth", "."])
def test_unreadable_files_are_named(tmp_path: Path, name: str) -> None:
    if name.startswith("damaged"):
        (tmp_path / name).write_bytes(b"\x08\x00\x00\x00 not weights at all")
    with pytest.raises(ValueError, match="cannot be read as weights"):
        load_encoder_weights(make_encoder(), tmp_path / name)


def test_a_file_without_tensors_is_refused(tmp_path: Path) -> None:
    torch.save({"epoch": 3}, tmp_path / "log.pth")
    with pytest.raises(ValueError, match="holds no table of tensors"):
        load_encoder_weights(make_encoder(), tmp_path / "log.pth")


def test_a_file_of_another_backbone_says_what_is_wrong(tmp_path: Path) -> None:
    torch.save(timm.create_model("test_vit2", num_classes=0).state_dict(), tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"other\.pth: .*no square grid|other\.pth: .*missing \(cls_token"):
        load_encoder_weights(make_encoder(), tmp_path / "other.pth")
