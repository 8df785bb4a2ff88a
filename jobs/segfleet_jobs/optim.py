"""Optimiser, parameter groups and the learning rate of every step."""

from __future__ import annotations

import torch
from torch import nn

from segfleet.spec.sections import OptimSpec
from segfleet_models.segmenter import Segmenter


def learning_rate(spec: OptimSpec, step: int, num_steps: int) -> float:
    """Learning rate of a step, before `encoder_lr_scale`.

    Poly with a floor, as in the reference code: (lr - min_lr) * (1 - step / num_steps) ** power + min_lr.

    Args:
        spec: The optimiser's section of the spec.
        step: 0 <= step < num_steps.
        num_steps: Length of the training.
    """
    warmup = min(1.0, (step + 1) / spec.warmup_steps) if spec.warmup_steps else 1.0
    if spec.schedule == "constant":
        return spec.lr * warmup
    decay: float = (1.0 - step / num_steps) ** spec.power
    return ((spec.lr - spec.min_lr) * decay + spec.min_lr) * warmup


def build_optimizer(model: Segmenter, spec: OptimSpec) -> torch.optim.Optimizer:
    """SGD or AdamW over the trainable parameters; freezes the encoder when its scale is 0.

    Args:
        model: Its embeddings, biases and norms are not decayed.
        spec: The optimiser's section of the spec.
    """
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    undecayed = model.no_weight_decay()
    for name, parameter in model.named_parameters():
        in_encoder = name.startswith("encoder.")
        if in_encoder and spec.encoder_lr_scale == 0:
            parameter.requires_grad_(False)
            continue
        decayed = parameter.ndim >= 2 and name not in undecayed
        groups.setdefault((in_encoder, decayed), []).append(parameter)
    parameters = [
        {
            "params": members,
            "lr_scale": spec.encoder_lr_scale if in_encoder else 1.0,
            "weight_decay": spec.weight_decay if decayed else 0.0,
        }
        for (in_encoder, decayed), members in sorted(groups.items())
    ]
    if spec.name == "adamw":
        return torch.optim.AdamW(parameters, lr=spec.lr)
    return torch.optim.SGD(parameters, lr=spec.lr, momentum=spec.momentum, nesterov=spec.nesterov and spec.momentum > 0)


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Give every group its share of the learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"]
