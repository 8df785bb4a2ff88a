"""From the windows' logits to the label map, and the confusion matrix: ours beside the reference code's way.

The network is replaced by ready logits. Prints CPU time (median of interleaved rounds, one thread) and peak memory over
the inputs (each in a process of its own).  Run: python benchmarks/bench_evaluation.py [--rounds N]
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import Connection

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bench_loss import resident_mib
from plain_evaluation import FixedLogits, plain_probabilities
from segfleet_models.inference import WindowConfig, pass_size, predict, window_starts
from segfleet_models.metrics import confusion_matrix

Labels = NDArray[np.uint8]
# name: picture, classes, windows
CASES = {
    "ADE20K": ((512, 683), 150, WindowConfig(512, 480, 512)),
    "ADE20K, flip": ((512, 683), 150, WindowConfig(512, 480, 512, flip=True)),
    "Cityscapes": ((1024, 2048), 19, WindowConfig(768, 512, 1024)),
    "Pascal Context": ((480, 640), 60, WindowConfig(480, 320, 480)),
}


def case_inputs(name: str) -> tuple[FixedLogits, Tensor, WindowConfig]:
    """A model of ready logits, a black picture and its windows."""
    size, num_classes, config = CASES[name]
    starts = [window_starts(side, config.window, config.stride) for side in pass_size(size, config, 1.0)]
    patches = config.window // 16
    model = FixedLogits(num_classes, 16, (patches, patches), (1 + config.flip) * len(starts[0]) * len(starts[1]))
    return model, torch.zeros(*size, 3, dtype=torch.uint8), config


def plain_labels(model: FixedLogits, image: Tensor, config: WindowConfig) -> Tensor:
    """The reference code's way."""
    with torch.inference_mode():
        return plain_probabilities(model, image, config).argmax(0)


def our_labels(model: FixedLogits, image: Tensor, config: WindowConfig) -> Tensor:
    """segfleet's."""
    return predict(model, image, config)  # type: ignore[arg-type]


def plain_counts(pred: Labels, target: Labels) -> list[Tensor]:
    """Three histograms of the valid pixels, as the reference and MMSegmentation count."""
    guess, truth = torch.from_numpy(pred).float(), torch.from_numpy(target).float()
    valid = truth != 255
    guess, truth = guess[valid], truth[valid]
    return [torch.histc(labels, bins=150, min=0, max=149) for labels in (guess[guess == truth], guess, truth)]


def our_counts(pred: Labels, target: Labels) -> Tensor:
    """segfleet's."""
    return confusion_matrix(pred, target, 150, 255)


def label_maps() -> tuple[Labels, Labels]:
    """A truth of blocks with 5 % ignored pixels, and a prediction that is right on most of it; 150 classes, 512x683."""
    rng = np.random.default_rng(0)
    blocks = [rng.integers(0, 150, (13, 17), dtype=np.uint8) for _ in range(2)]
    truth, other = (cv2.resize(block, (683, 512), interpolation=cv2.INTER_NEAREST) for block in blocks)
    pred = np.where(rng.random(truth.shape) < 0.7, truth, other)
    return pred, np.where(rng.random(truth.shape) < 0.05, np.uint8(255), truth)


def medians_ms(calls: list[Callable[[], object]], rounds: int) -> list[float]:
    """CPU milliseconds of each call, in rounds that take turns; the first one warms up."""
    times: list[list[float]] = [[] for _ in calls]
    for number in range(rounds + 1):
        for call, seconds in zip(calls, times, strict=True):
            begin = time.process_time()
            call()
            if number:
                seconds.append(time.process_time() - begin)
    return [1000 * statistics.median(seconds) for seconds in times]


def send_peak(label: Callable[[FixedLogits, Tensor, WindowConfig], Tensor], name: str, pipe: Connection) -> None:
    """Send the growth of this process's memory at the height of one picture, sampled each ms, MiB."""
    torch.set_num_threads(1)
    label(FixedLogits(3, 16, (2, 2), 1), torch.zeros(32, 32, 3, dtype=torch.uint8), WindowConfig(32, 32))  # warm up
    inputs = case_inputs(name)
    before, highest, done = resident_mib(), 0.0, threading.Event()

    def sample() -> None:
        nonlocal highest
        while not done.wait(0.001):
            highest = max(highest, resident_mib())

    sampler = threading.Thread(target=sample)
    sampler.start()
    label(*inputs)
    done.set()
    sampler.join()
    pipe.send(max(highest, resident_mib()) - before)


def peak_mib(label: Callable[[FixedLogits, Tensor, WindowConfig], Tensor], name: str) -> float:
    """`send_peak` in a fresh process."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=send_peak, args=(label, name, sender))
    process.start()
    mib = float(receiver.recv())
    process.join()
    return mib


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    print(f"{'windows -> labels':<18}{'plain':>10}{'ours':>10}{'faster':>9}{'plain':>12}{'ours':>11}", end="")
    print(f"{'leaner':>9}{'same':>11}")
    for name in CASES:
        inputs = case_inputs(name)
        same = float((plain_labels(*inputs) == our_labels(*inputs)).float().mean())
        a, b = medians_ms([lambda: plain_labels(*inputs), lambda: our_labels(*inputs)], rounds)  # noqa: B023
        c, d = peak_mib(plain_labels, name), peak_mib(our_labels, name)
        print(
            f"{name:<18}{a:>7.0f} ms{b:>7.0f} ms{a / b:>8.1f}x{c:>8.0f} MiB{d:>7.1f} MiB"
            f"{c / max(d, 1):>8.0f}x{100 * same:>10.4f}%"
        )
    maps = label_maps()
    a, b = medians_ms([lambda: plain_counts(*maps), lambda: our_counts(*maps)], 10 * rounds)
    print(f"{'confusion matrix':<18}{a:>7.2f} ms{b:>7.2f} ms{a / b:>8.1f}x")


if __name__ == "__main__":
    main()
