"""Seg-Ti/16 with mask decoder, 512x512, 150 classes, forward pass and whole training step: ours beside the plain way.

The plain way is the reference code's (see `plain_model`), with the same weights. Prints time (median of interleaved
rounds) and peak memory over the loaded model (each in a process of its own).

Run: python benchmarks/bench_model.py [--rounds N] [--threads N]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from torch import Tensor, nn

from plain_model import PlainSegmenter, plain_step
from rounds import medians_ms
from segfleet.spec.kinds import TrainSpec
from segfleet.spec.resolve import resolve_spec
from segfleet_jobs.loop import model_config
from segfleet_jobs.measuring import PeakMemory, in_fresh_process
from segfleet_jobs.optim import build_optimizer
from segfleet_jobs.ranks import Ranks
from segfleet_jobs.step import TrainStep
from segfleet_models.build import build_segmenter
from segfleet_pipelines.batch import Batch

SIZE, CLASSES = 512, 150
CPU = torch.device("cpu")
Work = Callable[[], object]


def make_spec() -> TrainSpec:
    """The reference's recipe: SGD, poly."""
    spec = resolve_spec(
        {
            "kind": "train",
            "name": "bench",
            "recipe": "ade20k",
            "data": {"shards": "none"},
            "model": {"variant": "seg-ti-mask/16"},
        }
    )
    assert isinstance(spec, TrainSpec)
    return spec


def our_model() -> nn.Module:
    """segfleet's."""
    torch.manual_seed(0)
    return build_segmenter(model_config(make_spec(), CLASSES))


def plain_model() -> nn.Module:
    """The reference code's way, with the same weights."""
    model = PlainSegmenter(192, CLASSES, SIZE)
    model.load_state_dict(our_model().state_dict())
    return model


def make_batch(size: int) -> Batch:
    """Noise, with 5 % ignored pixels."""
    generator = torch.Generator().manual_seed(0)
    masks = torch.randint(CLASSES, (size, SIZE, SIZE), generator=generator)
    masks[torch.rand(masks.shape, generator=generator) < 0.05] = 255
    images = torch.randint(256, (size, SIZE, SIZE, 3), dtype=torch.uint8, generator=generator)
    return Batch(images, masks.byte(), torch.full((size, 2), SIZE), None, ("",) * size, (), 0, 0)


def normalised(images: Tensor) -> Tensor:
    """(B, H, W, 3) uint8 to (B, 3, H, W), as AugReg's weights expect."""
    return images.permute(0, 3, 1, 2).float().div_(127.5).sub_(1)


def our_step(size: int) -> Work:
    """A step of segfleet's trainer."""
    model, spec, batch = our_model(), make_spec(), make_batch(size)
    step = TrainStep(model, model, build_optimizer(model, spec.optim), spec, 255, Ranks(0, 1, CPU))
    return lambda: step(batch)


def plain_training(size: int) -> Work:
    """A step of the reference's trainer."""
    model, batch = plain_model().train(), make_batch(size)
    assert isinstance(model, PlainSegmenter)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.001, momentum=0.9, nesterov=True)
    return lambda: plain_step(model, optimizer, normalised(batch.images), batch.masks.long())


def forward_of(model: nn.Module, size: int) -> Work:
    """Pictures to the scores of all pixels, no gradients."""
    pixels = normalised(make_batch(size).images)
    model.eval()
    upsample = getattr(model, "upsample", lambda scores, _: scores)

    def work() -> Tensor:
        with torch.inference_mode():
            scores: Tensor = upsample(model(pixels), (SIZE, SIZE))
        return scores

    return work


def step_peak_mib(make: Callable[[int], Work], size: int) -> float:
    """Peak of two steps over the loaded model; the second one has the optimiser's memory too."""
    work = make(size)
    with PeakMemory(CPU) as peak:
        for _ in range(2):
            work()
    return peak.mib or 0.0


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"{'Seg-Ti-Mask/16':<28}{'plain':>12}{'ours':>12}{'ratio':>9}")
    ours, plain = forward_of(our_model(), 1), forward_of(plain_model(), 1)
    difference = float((ours() - plain()).abs().max())  # type: ignore[operator]
    show("forward, 1 picture", "ms", *medians_ms([plain, ours], options.rounds))
    show("training step, 1 picture", "ms", *medians_ms([plain_training(1), our_step(1)], options.rounds))
    for size in (1, 2):
        peaks = (in_fresh_process(step_peak_mib, make, size) for make in (plain_training, our_step))
        show(f"memory of a step, {size} picture{'s' * (size > 1)}", "MiB", *peaks)
    print(f"scores of the two differ by at most {difference:.0e}")


def show(what: str, unit: str, plain: float, ours: float) -> None:
    """Print a line."""
    print(f"{what:<28}{plain:>8.0f} {unit:<3}{ours:>8.0f} {unit:<3}{plain / ours:>8.2f}x", flush=True)


if __name__ == "__main__":
    main()
