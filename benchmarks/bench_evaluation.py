"""From the windows' logits to the label map, and the confusion matrix: ours beside the reference code's way.

The network is replaced by ready logits. Prints CPU time (median of interleaved rounds, one thread) and peak memory over
the inputs (each in a process of its own).  Run: python benchmarks/bench_evaluation.py [--rounds N]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from plain_evaluation import FixedLogits, plain_probabilities
from rounds import medians_ms
from segfleet_jobs.measuring import PeakMemory, in_fresh_process
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


class ReadyLogits(FixedLogits):
    """Its pictures are neither read nor made: what they take belongs to the network."""

    @staticmethod
    def normalise(images: Tensor) -> Tensor:
        """Of the right shape, (B, 3, H, W), and without memory of its own."""
        return torch.zeros(1).expand(len(images), 3, *images.shape[1:3])


def case_inputs(name: str) -> tuple[FixedLogits, Tensor, WindowConfig]:
    """A model of ready logits, a black picture and its windows."""
    size, num_classes, config = CASES[name]
    starts = [window_starts(side, config.window, config.stride) for side in pass_size(size, config, 1.0)]
    patches = config.window // 16
    model = ReadyLogits(num_classes, 16, (patches, patches), (1 + config.flip) * len(starts[0]) * len(starts[1]))
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


def label_maps(*, noise: bool) -> tuple[Labels, Labels]:
    """A prediction that is right on 70 % of a truth of which 5 % are ignored; 150 classes, 512x683.

    Wrong and ignored places are regions, as in real label maps, or single pixels: the worst that can be.
    """
    rng = np.random.default_rng(0)
    blocks = [rng.integers(0, 150, (13, 17), dtype=np.uint8) for _ in range(2)]
    truth, other = (cv2.resize(block, (683, 512), interpolation=cv2.INTER_NEAREST) for block in blocks)
    places = rng.random((2, *truth.shape)) if noise else np.stack([_regions(rng) for _ in range(2)])
    right, ignored = (place < np.quantile(place, share) for place, share in zip(places, (0.7, 0.05), strict=True))
    return np.where(right, truth, other), np.where(ignored, np.uint8(255), truth)


def _regions(rng: np.random.Generator) -> NDArray[np.float64]:
    """A smooth random field, as coarse as a network's patches."""
    return cv2.resize(rng.random((32, 43)), (683, 512), interpolation=cv2.INTER_CUBIC)


def peak_mib(label: Callable[[FixedLogits, Tensor, WindowConfig], Tensor], name: str) -> float:
    """Growth of a fresh process's memory at the height of one picture."""
    torch.set_num_threads(1)
    label(FixedLogits(3, 16, (2, 2), 1), torch.zeros(32, 32, 3, dtype=torch.uint8), WindowConfig(32, 32))  # warm up
    inputs = case_inputs(name)
    with PeakMemory(torch.device("cpu")) as peak:
        label(*inputs)
    return peak.mib or 0.0


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
        c, d = (in_fresh_process(peak_mib, label, name) for label in (plain_labels, our_labels))
        print(
            f"{name:<18}{a:>7.0f} ms{b:>7.0f} ms{a / b:>8.1f}x{c:>8.0f} MiB{d:>7.1f} MiB"
            f"{c / max(d, 1):>8.0f}x{100 * same:>10.4f}%"
        )
    for name, noise in (("confusion matrix", False), ("confusion, noise", True)):
        pred, truth = label_maps(noise=noise)
        a, b = medians_ms([partial(plain_counts, pred, truth), partial(our_counts, pred, truth)], 10 * rounds)
        print(f"{name:<18}{a:>7.2f} ms{b:>7.2f} ms{a / b:>8.1f}x")


if __name__ == "__main__":
    main()
