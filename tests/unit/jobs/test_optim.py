"""The reference code's schedule, and which parameters get which learning rate and decay."""

from __future__ import annotations

import pytest
import torch

from segfleet.spec.sections import OptimSpec
from segfleet_jobs.optim import build_optimizer, learning_rate, set_learning_rate, set_training_mode
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


def test_cosine_falls_from_lr_to_min_lr_after_the_warm_up() -> None:
    spec = OptimSpec(schedule="cosine", lr=0.1, min_lr=0.02, warmup_steps=4)
    rates = [learning_rate(spec, step, 15) for step in range(15)]
    assert rates[:5] == pytest.approx([0.025, 0.05, 0.075, 0.1, 0.1])
    assert rates[9] == pytest.approx(0.06)
    assert rates[14] == pytest.approx(0.02)
    assert rates[4:] == sorted(rates[4:], reverse=True)


def test_cosine_bears_a_warm_up_as_long_as_the_training() -> None:
    spec = OptimSpec(schedule="cosine", lr=0.1, warmup_steps=3)
    assert [learning_rate(spec, step, 3) for step in range(3)] == pytest.approx([0.1 / 3, 0.2 / 3, 0.1])


def test_layers_further_down_learn_more_slowly() -> None:
    model = tiny_model()
    optimizer = build_optimizer(model, OptimSpec(name="adamw", layer_decay=0.5, encoder_lr_scale=0.2))
    set_learning_rate(optimizer, 1.0)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    rates = {names[id(p)]: group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert rates["decoder.cls_emb"] == 1.0
    assert rates["encoder.vit.norm.weight"] == pytest.approx(0.2)
    assert rates["encoder.vit.blocks.11.attn.qkv.weight"] == pytest.approx(0.2 * 0.5)
    assert rates["encoder.vit.blocks.0.attn.qkv.bias"] == pytest.approx(0.2 * 0.5**12)
    assert rates["encoder.vit.pos_embed"] == rates["encoder.vit.patch_embed.proj.weight"]
    assert rates["encoder.vit.pos_embed"] == pytest.approx(0.2 * 0.5**13)


def test_a_frozen_encoder_is_in_evaluation_mode_and_keeps_no_activations() -> None:
    model, spec = tiny_model(), OptimSpec(encoder_lr_scale=0.0)
    build_optimizer(model, spec)
    set_training_mode(model, spec)
    assert not any(module.training for module in model.encoder.modules())
    assert model.decoder.training
    assert model.encoder(torch.zeros(1, 3, 32, 32)).grad_fn is None
    set_training_mode(model, OptimSpec())
    assert model.encoder.training


def test_momentum_begins_at_zero_as_a_first_step_may_be_skipped() -> None:
    optimizer = build_optimizer(tiny_model(), OptimSpec())
    assert all(not state["momentum_buffer"].any() for state in optimizer.state.values())
