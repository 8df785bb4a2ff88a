"""Optimiser, parameter groups, the learning rate of every step, and what a frozen encoder means."""

from __future__ import annotations

import math

import torch
from torch import nn

from segfleet.spec.sections import OptimSpec
from segfleet_models.segmenter import SegmentationModel


def learning_rate(spec: OptimSpec, step: int, num_steps: int) -> float:
    """Learning rate of a step, before the shares of encoder and layers.

    Poly with a floor, as in the reference code: (lr - min_lr) * (1 - step / num_steps) ** power + min_lr. Cosine falls
    from lr to min_lr over the steps after the warm-up. Loshchilov and Hutter 2016 (without restarts).

    Args:
        spec: The optimiser's section of the spec.
        step: 0 <= step < num_steps.
        num_steps: Length of the training.
    """
    warmup = min(1.0, (step + 1) / spec.warmup_steps) if spec.warmup_steps else 1.0
    if spec.schedule == "constant":
        return spec.lr * warmup
    if spec.schedule == "cosine":
        # The last step is the first to have min_lr itself.
        done = max(0, step - spec.warmup_steps) / max(1, num_steps - 1 - spec.warmup_steps)
        decay = 0.5 * (1.0 + math.cos(math.pi * min(1.0, done)))
        rate = (spec.lr - spec.min_lr) * decay + spec.min_lr
        return rate if step >= spec.warmup_steps else spec.lr * warmup
    decay = math.pow(1.0 - step / num_steps, spec.power)
    return ((spec.lr - spec.min_lr) * decay + spec.min_lr) * warmup


def build_optimizer(model: SegmentationModel, spec: OptimSpec) -> torch.optim.Optimizer:
    """Fused SGD or AdamW over the trainable parameters; freezes the encoder when its scale is 0.

    A fused optimiser skips a step on the device when its `found_inf` says so, which needs no look from the CPU.

    Args:
        model: Its embeddings, biases and norms are not decayed.
        spec: The optimiser's section of the spec.
    """
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    undecayed, scales = model.no_weight_decay(), _learning_rate_scales(model, spec)
    for name, parameter in model.named_parameters():
        if is_frozen(name, spec):
            parameter.requires_grad_(False)
            continue
        decayed = parameter.ndim >= 2 and name not in undecayed
        groups.setdefault((scales[name], decayed), []).append(parameter)
    parameters = [
        {"params": members, "lr_scale": scale, "weight_decay": spec.weight_decay if decayed else 0.0}
        for (scale, decayed), members in sorted(groups.items(), key=lambda item: item[0])
    ]
    if spec.name == "adamw":
        return torch.optim.AdamW(parameters, lr=spec.lr, fused=True)
    nesterov = spec.nesterov and spec.momentum > 0
    optimizer = torch.optim.SGD(parameters, lr=spec.lr, momentum=spec.momentum, nesterov=nesterov, fused=True)
    if spec.momentum > 0:
        # Left to itself, a first step that is skipped would leave memory of no meaning in the buffers.
        for parameter in (member for members in groups.values() for member in members):
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


def is_frozen(name: str, spec: OptimSpec) -> bool:
    """Whether the parameter of this name stays as it is."""
    return name.startswith("encoder.") and spec.encoder_lr_scale == 0


def set_training_mode(model: SegmentationModel, spec: OptimSpec) -> None:
    """Training mode, but for a frozen encoder: no dropout, no stochastic depth, no statistics of its own batches.

    Nor does a frozen encoder keep activations: nothing in it or before it asks for a gradient.
    """
    model.train()
    if spec.encoder_lr_scale == 0:
        model.encoder.eval()


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Give every group its share of the learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"]


def _learning_rate_scales(model: SegmentationModel, spec: OptimSpec) -> dict[str, float]:
    """Each parameter's share: the encoder's, times `layer_decay` for every layer above it (Bao et al. 2021, BEiT)."""
    names = [name for name, _ in model.named_parameters()]
    scales = {name: spec.encoder_lr_scale if name.startswith("encoder.") else 1.0 for name in names}
    if spec.layer_decay < 1:
        layers = {name: model.layer_of(name) for name in names}
        top = max(layers.values())
        scales = {name: scale * spec.layer_decay ** (top - layers[name]) for name, scale in scales.items()}
    return scales
