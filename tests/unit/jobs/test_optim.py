"""The reference code's schedule, and which parameters get which learning rate and decay."""

from __future__ import annotations

import pytest
import torch

from segfleet.spec.sections import OptimSpec
from segfleet_jobs.optim import build_optimizer, learning_rate, set_learning_rate
from segfleet_models.build import ModelConfig, build_segmenter
from segfleet_models.segmenter import Segmenter


def tiny_model() -> Segmenter:
    config = ModelConfig("vit_tiny_patch16_224", 16, "mask", num_classes=5, img_size=32, decoder_layers=1)
    return build_segmenter(config)


@pytest.mark.parametrize(
    ("step", "expected"),
    [(0, 1e-3), (80_000, (1e-3 - 1e-5) * 0.5**0.9 + 1e-5), (159_999, (1e-3 - 1e-5) * (1 / 160_000) ** 0.9 + 1e-5)],
)
def test_poly_with_a_floor(step: int, expected: float) -> None:
    assert learning_rate(OptimSpec(), step, 160_000) == pytest.approx(expected, rel=1e-12)


def test_warmup_rises_linearly_to_the_schedule() -> None:
    spec = OptimSpec(warmup_steps=4, schedule="constant", lr=0.1)
    assert [learning_rate(spec, step, 100) for step in range(5)] == pytest.approx([0.025, 0.05, 0.075, 0.1, 0.1])


def test_sgd_is_the_references_nesterov_without_decay() -> None:
    optimizer = build_optimizer(tiny_model(), OptimSpec())
    assert isinstance(optimizer, torch.optim.SGD)
    for group in optimizer.param_groups:
        assert (group["momentum"], group["nesterov"], group["weight_decay"]) == (0.9, True, 0.0)


def test_decay_spares_biases_norms_and_embeddings() -> None:
    model = tiny_model()
    optimizer = build_optimizer(model, OptimSpec(name="adamw", weight_decay=0.05))
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    decayed = {names[id(p)] for group in optimizer.param_groups if group["weight_decay"] for p in group["params"]}
    spared = set(names.values()) - decayed
    assert "encoder.vit.blocks.0.attn.qkv.weight" in decayed
    assert {"encoder.vit.pos_embed", "encoder.vit.cls_token", "decoder.cls_emb", "encoder.vit.norm.weight"} <= spared
    assert all(model.get_parameter(name).ndim >= 2 for name in decayed)


def test_every_parameter_is_in_exactly_one_group() -> None:
    model = tiny_model()
    optimizer = build_optimizer(model, OptimSpec(name="adamw", weight_decay=0.05))
    members = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(members) == sorted(id(p) for p in model.parameters())


def test_the_encoder_gets_its_share_of_the_learning_rate() -> None:
    model = tiny_model()
    optimizer = build_optimizer(model, OptimSpec(encoder_lr_scale=0.1))
    set_learning_rate(optimizer, 0.01)
    encoder = {id(p) for p in model.encoder.parameters()}
    for group in optimizer.param_groups:
        expected = 0.001 if id(group["params"][0]) in encoder else 0.01
        assert group["lr"] == pytest.approx(expected)


def test_scale_zero_freezes_the_encoder() -> None:
    model = tiny_model()
    optimizer = build_optimizer(model, OptimSpec(encoder_lr_scale=0.0))
    assert not any(p.requires_grad for p in model.encoder.parameters())
    assert all(p.requires_grad for p in model.decoder.parameters())
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(list(model.decoder.parameters()))
