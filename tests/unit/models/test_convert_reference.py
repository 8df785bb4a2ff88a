from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from plain_checkpoints import enlarge, random_state, segment
from plain_segmenter import State
from segfleet_models.build import build_segmenter
from segfleet_models.convert import Imported
from segfleet_models.convert_reference import from_reference, load_reference, read_variant
from segfleet_models.segmenter import Segmenter


def variant(decoder: str, patch: int, *, grid: int = 4, distilled: bool = False, classes: int = 5) -> dict[str, Any]:
    """What the reference's training script writes, cut down to a tiny model."""
    net: dict[str, Any] = {
        "backbone": "deit_tiny_distilled_patch16_224" if distilled else "vit_tiny_patch16_384",
        "image_size": (grid * patch, grid * patch),
        "patch_size": patch,
        "d_model": 192,
        "n_heads": 3,
        "n_layers": 12,
        "normalization": "deit" if distilled else "vit",
        "dropout": 0.0,
        "drop_path_rate": 0.1,
        "n_cls": classes,
        "decoder": {"name": "linear", "n_cls": classes},
    }
    if decoder == "mask":
        rates = {"drop_path_rate": 0.0, "dropout": 0.1}
        net["decoder"] = {"name": "mask_transformer", **rates, "n_layers": 2, "n_cls": classes}
    if distilled:
        net["distilled"] = True
    return {
        "algorithm_kwargs": {"start_epoch": 0, "num_epochs": 64},
        "dataset_kwargs": {"dataset": "ade20k", "crop_size": grid * patch, "normalization": net["normalization"]},
        "inference_kwargs": {"im_size": 96, "window_size": 64, "window_stride": 48},
        "net_kwargs": net,
        "resume": True,
    }


def write(folder: Path, state: State, settings: dict[str, Any], **extra: object) -> Path:
    """A folder as the reference leaves it, with what its training keeps beside the weights."""
    optimiser = {"state": {0: {"momentum_buffer": torch.zeros(2)}}, "param_groups": [{"lr": 1e-3, "params": [0]}]}
    document = {"model": state, "optimizer": optimiser, "lr_scheduler": {"last_epoch": 3}, "n_cls": 5, "epoch": 3}
    torch.save(document | extra, folder / "checkpoint.pth")
    (folder / "variant.yml").write_text(yaml.dump(settings))
    return folder


def built(imported: Imported) -> Segmenter:
    model = build_segmenter(imported.config)
    model.load_state_dict(imported.state)
    return model.eval()


@pytest.mark.parametrize("decoder", ["mask", "linear"])
@pytest.mark.parametrize(
    ("patch", "distilled", "size"),
    [
        (8, False, (32, 32)),
        (16, False, (50, 71)),
        (32, False, (100, 60)),
        (8, True, (21, 30)),
        (16, True, (64, 64)),
        (32, True, (70, 128)),
    ],
)
def test_logits_equal_the_plain_implementation(
    decoder: str, patch: int, distilled: bool, size: tuple[int, int]
) -> None:
    state = random_state(decoder=decoder, patch=patch, distilled=distilled, classes=150)
    pictures = torch.randint(0, 256, (2, *size, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    mean, std = ((123.68, 116.28, 103.53), (58.4, 57.12, 57.38)) if distilled else ((127.5,) * 3, (127.5,) * 3)
    pixels = ((pictures.float() - torch.tensor(mean)) / torch.tensor(std)).permute(0, 3, 1, 2)

    model = built(from_reference(state, variant(decoder, patch, distilled=distilled, classes=150)))

    with torch.no_grad():
        torch.testing.assert_close(model.normalise(pictures), pixels, rtol=1e-5, atol=1e-5)
        plain = enlarge(segment(pixels, state, patch=patch, stored_grid=4, heads=3), patch, size)
        torch.testing.assert_close(model.upsample(model(pixels), size), plain, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("patch", [8, 32])
def test_with_few_classes_single_precision_is_as_far_from_the_truth_as_the_plain_implementation(patch: int) -> None:
    """The norm over the classes divides by the spread of the cosines, 0.004 for five random ones alike.

    Their rounding, 6e-8, so becomes 1e-5, whoever computes it; double precision shows that nothing else differs.
    """
    state = random_state(decoder="mask", patch=patch)
    model = built(from_reference(state, variant("mask", patch)))
    pixels = torch.randn(2, 3, 3 * patch, 4 * patch, generator=torch.Generator().manual_seed(1))
    options = {"patch": patch, "stored_grid": 4, "heads": 3}
    with torch.no_grad():
        ours, plain = model(pixels), segment(pixels, state, **options)
        exact = segment(pixels.double(), {key: value.double() for key, value in state.items()}, **options)
        floor = float((plain - exact).abs().max())
        assert float((ours - exact).abs().max()) < 3 * floor < 1e-4
        torch.testing.assert_close(model.double()(pixels.double()), exact, rtol=1e-9, atol=1e-9)


def test_takes_over_what_the_variant_says(tmp_path: Path) -> None:
    imported = load_reference(write(tmp_path, random_state(decoder="mask", patch=16), variant("mask", 16)))
    assert "python/tuple" in (tmp_path / "variant.yml").read_text()
    assert (imported.window, imported.stride, imported.short_side, imported.dataset) == (64, 48, 96, "ade20k")
    assert imported.left_out == ("encoder.head.bias", "encoder.head.weight")
    config = imported.config
    assert (config.backbone, config.patch_size, config.img_size) == ("vit_tiny_patch16_384", 16, 64)
    assert (config.layer_norm_eps, config.position_mode) == (1e-5, "bilinear")
    assert (config.drop_path, config.dropout, config.decoder_drop_path, config.decoder_dropout) == (0.1, 0.0, 0.0, 0.1)


def test_two_classes_keep_the_layer_norm_they_were_trained_with(tmp_path: Path) -> None:
    state = random_state(decoder="mask", patch=16, classes=2)
    settings = variant("mask", 16)
    settings["net_kwargs"]["n_cls"] = 2
    model = built(load_reference(write(tmp_path, state, settings)))
    pixels = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        plain = segment(pixels, state, patch=16, stored_grid=4, heads=3)
        torch.testing.assert_close(model(pixels), plain, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("decoder", ["mask", "linear"])
def test_a_window_below_a_whole_patch_is_rounded_down_as_there(tmp_path: Path, decoder: str) -> None:
    settings = variant(decoder, 16)
    settings["net_kwargs"]["image_size"] = (70, 70)
    assert load_reference(write(tmp_path, random_state(decoder=decoder, patch=16), settings)).config.img_size == 64


def test_wrapped_half_precision_weights_of_the_old_file_format_are_read(tmp_path: Path) -> None:
    state = random_state(decoder="linear", patch=16)
    write(tmp_path, state, variant("linear", 16))
    halved = {f"module.{key}": value.half() for key, value in state.items()}
    torch.save({"model": halved}, tmp_path / "checkpoint.pth", _use_new_zipfile_serialization=False)
    taken = load_reference(tmp_path / "checkpoint.pth").state["encoder.vit.norm.weight"]
    assert taken.dtype == torch.float32
    assert torch.equal(taken, state["encoder.norm.weight"].half().float())


def test_every_unknown_missing_and_misshapen_key_is_listed(tmp_path: Path) -> None:
    state = random_state(decoder="mask", patch=16)
    for key in ("encoder.blocks.7.mlp.fc1.bias", "decoder.cls_emb"):
        del state[key]
    state |= {"encoder.blocks.12.norm1.bias": torch.zeros(192), "neck.weight": torch.zeros(1)}
    state["decoder.proj_patch"] = torch.zeros(192, 191)
    with pytest.raises(ValueError, match="the checkpoint is not the model") as caught:
        load_reference(write(tmp_path, state, variant("mask", 16)))
    message = str(caught.value)
    assert "2 missing: " in message
    assert "encoder.blocks.7.mlp.fc1.bias" in message
    assert "decoder.cls_emb" in message
    assert "2 unknown: encoder.blocks.12.norm1.bias, neck.weight" in message
    assert "decoder.proj_patch gives (192, 191) instead of (192, 192)" in message
    assert "checkpoint.pth" in message


def test_missing_positions_are_named(tmp_path: Path) -> None:
    state = random_state(decoder="mask", patch=16)
    del state["encoder.pos_embed"]
    with pytest.raises(ValueError, match=r"no table of positions encoder\.pos_embed"):
        load_reference(write(tmp_path, state, variant("mask", 16)))


class Trap:
    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, ("trap-was-sprung",)


def test_a_checkpoint_cannot_run_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path, random_state(decoder="linear", patch=16, layers=1), variant("linear", 16), log=Trap())
    with pytest.raises(ValueError, match=r"checkpoint\.pth: cannot be read as weights"):
        load_reference(tmp_path)
    assert not (tmp_path / "trap-was-sprung").exists()


@pytest.mark.parametrize(
    "text",
    [
        "a: !!python/object/apply:os.mkdir [trap-was-sprung]",
        "a: !!python/object/new:os.mkdir [trap-was-sprung]",
        "a: !!python/name:os.mkdir",
        "a: !!python/module:os",
        "a: !!python/complex 1j",
        "a: !!python/tuple {b: 1}",
        "a: !unknown 1",
        "!!python/tuple [1]: a",
        'a: !!int ""',
        "a: !!bool maybe",
        "a: !!timestamp never",
        "a: [",
        "- 1",
        "",
    ],
)
def test_other_yaml_than_plain_data_and_tuples_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="cannot be read as a variant"):
        read_variant(text)
    assert not (tmp_path / "trap-was-sprung").exists()


def test_tuples_become_lists() -> None:
    assert read_variant(yaml.dump({"a": ((1, 2), [3])})) == {"a": [[1, 2], [3]]}


@pytest.mark.parametrize(
    ("section", "values", "message"),
    [
        ("net_kwargs", {"decoder": {"name": "unet"}}, "decoder 'unet'"),
        ("net_kwargs", {"decoder": None}, "no section 'decoder'"),
        ("net_kwargs", {"d_model": 100}, "no ViT has 100 channels"),
        ("net_kwargs", {"n_cls": "5"}, "n_cls is '5'"),
        ("net_kwargs", {"image_size": (64, 32)}, "no square"),
        ("net_kwargs", {"image_size": (80, 80)}, "5x5 patches, the checkpoint 4x4"),
        ("net_kwargs", {"dropout": "much"}, "dropout is 'much'"),
        ("net_kwargs", {"normalization": "mine"}, "normalization 'mine'"),
        ("inference_kwargs", {"window_size": 0}, "window_size is 0"),
    ],
)
def test_impossible_variants_are_explained(tmp_path: Path, section: str, values: dict[str, Any], message: str) -> None:
    settings = variant("linear", 16)
    settings[section] |= values
    with pytest.raises(ValueError, match=message):
        load_reference(write(tmp_path, random_state(decoder="linear", patch=16, layers=1), settings))


@pytest.mark.parametrize("flaw", ["no variant", "no checkpoint", "large variant", "no text"])
def test_unreadable_files_are_named_once(tmp_path: Path, flaw: str) -> None:
    write(tmp_path, random_state(decoder="linear", patch=16, layers=1), variant("linear", 16))
    damaged = tmp_path / ("checkpoint.pth" if flaw == "no checkpoint" else "variant.yml")
    damaged.unlink()
    if flaw == "large variant":
        damaged.write_text("# " + "x" * (1 << 20))
    if flaw == "no text":
        damaged.write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(ValueError, match=f"^{damaged}: ") as caught:
        load_reference(tmp_path)
    assert str(caught.value).count(f"{damaged}: ") == 1
