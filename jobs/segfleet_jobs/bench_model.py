"""Images a second, memory, parameters and FLOPs of a model, by the paper's protocol.

That is: pictures of 512x512, the largest batch that fits on a GPU, warm-up first, no gradients, scores of every pixel
as the result. The training step is the product's own, loss and update included.
"""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from segfleet.errors import SettingsError
from segfleet.spec.kinds import TrainSpec
from segfleet_jobs.loop import model_config
from segfleet_jobs.measuring import CPU_BATCH, PeakMemory
from segfleet_jobs.optim import build_optimizer, set_training_mode
from segfleet_jobs.ranks import Ranks
from segfleet_jobs.step import AUTOCAST, TrainStep
from segfleet_models.build import build_segmenter
from segfleet_models.segmenter import SegmentationModel, upsample_logits
from segfleet_pipelines.batch import Batch

_IGNORE_INDEX = 255
_WARM_UPS = 2
_MOST_PICTURES = 2**16
# The largest batch is found to a 16th.
_BATCH_ACCURACY = 16

Mode = Literal["forward", "train"]
# What is measured, over and over.
Work = Callable[[], object]
Tell = Callable[[int], None]


@dataclass(frozen=True)
class Task:
    """One line of the table to be.

    Attributes:
        model: What to call it.
        spec: Its training; pictures are of the size of the crop.
        num_classes: K.
        mode: The forward pass alone, or a whole training step.
        batch: Pictures at once; None: as many as fit on the GPU, two on a CPU.
        steps: Repetitions that are timed.
    """

    model: str
    spec: TrainSpec
    num_classes: int
    mode: Mode
    batch: int | None
    steps: int


@dataclass(frozen=True)
class Measurement:
    """One line of the table.

    Attributes:
        model: What it is called.
        mode: The forward pass alone, or a whole training step.
        device: cpu or cuda.
        batch: Pictures at once.
        size: Side of a picture, pixels.
        precision: fp32, bf16 or fp16.
        compiled: Whether torch.compile was used.
        images_per_s: By the median step.
        step_ms: The median step.
        peak_mib: Memory at its height, over the loaded model; None where the system doesn't tell.
        parameters: Of the model.
        gflops: 10^9 multiplications and additions of one picture's forward pass.
    """

    model: str
    mode: str
    device: str
    batch: int
    size: int
    precision: str
    compiled: bool
    images_per_s: float
    step_ms: float
    peak_mib: float | None
    parameters: int
    gflops: float


def measure(task: Task, tell: Tell = lambda _: None) -> Measurement:
    """Measure one model in this process.

    Args:
        task: The model, and how.
        tell: Called with the number of timed steps that are through.

    Raises:
        ValueError: the model cannot be built.
        SettingsError: not even one picture fits on the GPU.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(task.spec.train.seed)
    model = build_segmenter(model_config(task.spec, task.num_classes))
    gflops = _gflops(model, task.spec.train.crop)
    prepare = _prepare_training if task.mode == "train" else _prepare_forward
    make = prepare(model.to(device), task, device)
    batch = task.batch or (largest_batch(_fits(make)) if device.type == "cuda" else CPU_BATCH)
    work = make(batch)
    with PeakMemory(device) as peak:
        for _ in range(_WARM_UPS):
            work()
    seconds = _median_s(work, task.steps, device, tell)
    return Measurement(
        model=task.model,
        mode=task.mode,
        device=device.type,
        batch=batch,
        size=task.spec.train.crop,
        precision=task.spec.train.precision,
        compiled=task.spec.train.compile,
        images_per_s=batch / seconds,
        step_ms=1000 * seconds,
        peak_mib=peak.mib,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        gflops=gflops,
    )


def largest_batch(fits: Callable[[int], bool], most: int = _MOST_PICTURES) -> int:
    """The largest batch that fits, to a 16th: doubled until it doesn't, then halved in.

    Args:
        fits: Tries a batch.
        most: No more than that is tried.

    Raises:
        SettingsError: not even one picture fits.
    """
    good = 0
    bad = 1
    while bad <= most and fits(bad):
        good, bad = bad, 2 * bad
    if not good:
        raise SettingsError("not even one picture fits into the GPU's memory; try a smaller --size or --precision bf16")
    while bad <= most and bad - good > max(1, good // _BATCH_ACCURACY):
        middle = (good + bad) // 2
        good, bad = (middle, bad) if fits(middle) else (good, middle)
    return good


def _fits(make: Callable[[int], Work]) -> Callable[[int], bool]:
    def fits(batch: int) -> bool:
        try:
            work = make(batch)
            for _ in range(_WARM_UPS):  # the optimiser's own memory comes with the first step
                work()
        except torch.OutOfMemoryError:
            return False
        finally:
            torch.cuda.empty_cache()
        return True

    return fits


def _median_s(work: Work, steps: int, device: torch.device, tell: Tell) -> float:
    seconds = []
    for number in range(steps):
        _wait_for(device)
        begin = time.perf_counter()
        work()
        _wait_for(device)
        seconds.append(time.perf_counter() - begin)
        tell(number + 1)
    return statistics.median(seconds)


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _prepare_forward(model: SegmentationModel, task: Task, device: torch.device) -> Callable[[int], Work]:
    loop = task.spec.train
    model.eval()
    _arrange(model, task.spec)

    def make(batch: int) -> Work:
        pictures = torch.randint(256, (batch, loop.crop, loop.crop, 3), dtype=torch.uint8, device=device)
        pixels = model.normalise(pictures)

        def work() -> Tensor:
            dtype = AUTOCAST.get(loop.precision)
            with torch.inference_mode(), torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
                return upsample_logits(model(pixels), model.output_stride, (loop.crop, loop.crop))

        return work

    return make


def _prepare_training(model: SegmentationModel, task: Task, device: torch.device) -> Callable[[int], Work]:
    spec, side = task.spec, task.spec.train.crop
    optimizer = build_optimizer(model, spec.optim)
    set_training_mode(model, spec.optim)
    _arrange(model, spec)
    step = TrainStep(model, model, optimizer, spec, _IGNORE_INDEX, Ranks(0, 1, device))

    def make(size: int) -> Work:
        batch = Batch(
            images=torch.randint(256, (size, side, side, 3), dtype=torch.uint8),
            masks=torch.randint(task.num_classes, (size, side, side)).to(torch.uint8),
            extents=torch.full((size, 2), side),
            jitter=None,
            keys=("",) * size,
            skipped=(),
            num_skipped=0,
            step=0,
        )
        return lambda: step(batch)

    return make


def _arrange(model: SegmentationModel, spec: TrainSpec) -> None:
    if spec.train.channels_last:
        model.to(memory_format=torch.channels_last)
    if spec.train.compile:
        model.compile()


def _gflops(model: SegmentationModel, side: int) -> float:
    """Counted on a copy without values, which costs nothing."""
    shadow = copy.deepcopy(model).to("meta").eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        shadow(torch.empty(1, 3, side, side, device="meta"))
    return float(counter.get_total_flops()) / 1e9
