"""Upsampling + cross-entropy, forward and backward: ours beside F.interpolate + F.cross_entropy.

Prints CPU time (median of interleaved rounds, one thread) and peak memory over the inputs (each in a process of its
own), for the sizes of ADE20K, Cityscapes and CamVid.  Run: python benchmarks/bench_loss.py [--rounds N]
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import statistics
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

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


def cpu_s(loss: Loss, case: str) -> float:
    """CPU seconds of one forward and backward."""
    logits, target, patch = inputs(case)
    begin = time.process_time()
    loss(logits, target, patch).backward()
    return time.process_time() - begin


def resident_mib() -> float:
    """Resident memory of this process, MiB."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20


def peak_mib(loss: Loss, case: str, pipe: Connection) -> None:
    """Send the growth of this process's memory at the height of one forward and backward, sampled each ms, MiB."""
    torch.set_num_threads(1)
    logits, target, patch = inputs(case)
    loss(*inputs("CamVid"))  # load the kernels first
    before, highest, done = resident_mib(), 0.0, threading.Event()

    def sample() -> None:
        nonlocal highest
        while not done.wait(0.001):
            highest = max(highest, resident_mib())

    sampler = threading.Thread(target=sample)
    sampler.start()
    loss(logits, target, patch).backward()
    done.set()
    sampler.join()
    pipe.send(highest - before)


def measure_peak(loss: Loss, case: str) -> float:
    """`peak_mib` in a fresh process."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=peak_mib, args=(loss, case, sender))
    process.start()
    mib = float(receiver.recv())
    process.join()
    return mib


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    print(f"{'case':<12}{'plain':>10}{'ours':>10}{'faster':>9}{'plain':>12}{'ours':>10}{'leaner':>9}")
    for case in CASES:
        times: dict[Loss, list[float]] = {plain: [], ours: []}
        for number in range(rounds + 1):
            for loss, seconds in times.items():
                elapsed = cpu_s(loss, case)
                if number:  # the first round warms up
                    seconds.append(elapsed)
        a, b = (1000 * statistics.median(times[loss]) for loss in (plain, ours))
        c, d = measure_peak(plain, case), measure_peak(ours, case)
        print(f"{case:<12}{a:>7.0f} ms{b:>7.0f} ms{a / b:>8.1f}x{c:>8.0f} MiB{d:>6.0f} MiB{c / max(d, 1):>8.1f}x")


if __name__ == "__main__":
    main()
