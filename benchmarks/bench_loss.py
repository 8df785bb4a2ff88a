"""Upsampling + cross-entropy, forward and backward: ours beside F.interpolate + F.cross_entropy.

Prints CPU time (median of interleaved rounds, one thread) and peak memory over the inputs (each in a process of its
own), for the sizes of ADE20K, Cityscapes and CamVid.  Run: python benchmarks/bench_loss.py [--rounds N]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from rounds import medians_ms
from segfleet_jobs.measuring import PeakMemory, in_fresh_process
from segfleet_models.losses import cross_entropy_sum

# name: classes, crop, patch, batch
CASES = {"ADE20K": (150, 512, 16, 1), "Cityscapes": (19, 768, 16, 1), "CamVid": (11, 224, 14, 4)}
Loss = Callable[[Tensor, Tensor, int], Tensor]


def plain(logits: Tensor, target: Tensor, _: int) -> Tensor:
    """What the reference code and most others do."""
    pixels = F.interpolate(logits, size=target.shape[-2:], mode="bilinear", align_corners=False)
    return F.cross_entropy(pixels, target, ignore_index=255, reduction="sum")


def ours(logits: Tensor, target: Tensor, patch: int) -> Tensor:
    """segfleet's."""
    return cross_entropy_sum(logits, target, patch, 255)[0]


def inputs(case: str) -> tuple[Tensor, Tensor, int]:
    """Seeded logits and a target with 5 % ignored pixels."""
    classes, crop, patch, batch = CASES[case]
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(batch, classes, crop // patch, crop // patch, generator=generator, requires_grad=True)
    target = torch.randint(classes, (batch, crop, crop), generator=generator)
    target[torch.rand(target.shape, generator=generator) < 0.05] = 255
    return logits, target, patch


def work(loss: Loss, case: str) -> Callable[[], None]:
    """One forward and backward."""
    logits, target, patch = inputs(case)
    return lambda: torch.autograd.backward(loss(logits, target, patch), inputs=[logits])


def peak_mib(loss: Loss, case: str) -> float:
    """Growth of a fresh process's memory at the height of one forward and backward."""
    torch.set_num_threads(1)
    work(loss, "CamVid")()  # load the kernels first
    call = work(loss, case)
    with PeakMemory(torch.device("cpu")) as peak:
        call()
    return peak.mib or 0.0


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    print(f"{'case':<12}{'plain':>10}{'ours':>10}{'faster':>9}{'plain':>12}{'ours':>10}{'leaner':>9}")
    for case in CASES:
        a, b = medians_ms([work(plain, case), work(ours, case)], rounds)
        c, d = (in_fresh_process(peak_mib, loss, case) for loss in (plain, ours))
        print(f"{case:<12}{a:>7.0f} ms{b:>7.0f} ms{a / b:>8.1f}x{c:>8.0f} MiB{d:>6.0f} MiB{c / max(d, 1):>8.1f}x")


if __name__ == "__main__":
    main()
