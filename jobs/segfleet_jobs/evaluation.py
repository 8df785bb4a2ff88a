"""Sliding-window evaluation over all ranks: each validation sample exactly once, one confusion matrix."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from segfleet.spec.sections import EvalSpec
from segfleet_jobs.ranks import Ranks
from segfleet_jobs.step import AUTOCAST
from segfleet_models.inference import WindowConfig, predict
from segfleet_models.metrics import Scores, confusion_matrix, scores
from segfleet_models.segmenter import SegmentationModel
from segfleet_pipelines.batch import EvalSample
from segfleet_pipelines.loader import eval_samples
from segfleet_pipelines.manifest import Manifest

Picture = tuple[str, NDArray[np.uint8], NDArray[np.uint8], NDArray[np.uint8]]


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Result of one pass over a split, equal on every rank but for the pictures.

    Attributes:
        scores: mIoU, accuracies and per-class IoU.
        baseline_miou: mIoU of always answering the commonest class of this split.
        num_samples: Samples counted over all ranks.
        matrix: Confusion matrix over all ranks, (K, K) on the CPU, rows are the truth.
        pictures: (key, image, truth, prediction) of some of this rank's samples, spread over the split.
    """

    scores: Scores
    baseline_miou: float
    num_samples: int
    matrix: Tensor
    pictures: tuple[Picture, ...]


def window_config(spec: EvalSpec) -> WindowConfig:
    """The evaluation section as the model side takes it."""
    return WindowConfig(spec.window, spec.stride, spec.short_side, tuple(spec.scales), spec.flip, spec.protocol)


def majority_baseline(matrix: Tensor) -> float:
    """mIoU of always answering the commonest class: its pixel share over the number of classes present.

    Args:
        matrix: Confusion matrix, (K, K), rows are the truth.
    """
    truth = matrix.sum(dim=1)
    present = int((truth > 0).sum())
    return float(truth.max() / truth.sum() / present) if present else float("nan")


def evaluate(
    model: SegmentationModel,
    location: str,
    split: str,
    spec: EvalSpec,
    *,
    manifest: Manifest,
    ranks: Ranks,
    num_pictures: int = 0,
    progress: Callable[[int], None] | None = None,
) -> Evaluation:
    """Score the model on a split at the pictures' original sizes.

    Args:
        model: Put into evaluation mode for the pass and back into its mode after it.
        location: A prepared dataset.
        split: Its split.
        spec: Window, stride, scales, flip.
        manifest: Of the dataset when the job began.
        ranks: Each rank takes its own samples; the matrices are summed.
        num_pictures: How many of this rank's predictions to keep, at most.
        progress: Called with the number of this rank's samples done.

    Raises:
        DataError: damaged samples, or another dataset in this place meanwhile.
    """
    num_classes = manifest.num_classes
    matrix = torch.zeros(num_classes, num_classes, dtype=torch.int64)
    pictures: list[Picture] = []
    own_samples = len(range(ranks.rank, manifest.split(split).num_samples, ranks.world_size))
    kept = set(np.linspace(0, own_samples - 1, num_pictures).round().astype(int).tolist()) if num_pictures else set()
    count = 0
    for sample, predicted in predictions(model, location, split, window_config(spec), manifest=manifest, ranks=ranks):
        matrix += confusion_matrix(predicted, sample.mask, num_classes, manifest.ignore_index)
        if count in kept:
            pictures.append((sample.key, sample.image, sample.mask, predicted))
        count += 1
        if progress is not None:
            progress(count)
    summed = ranks.sum_(torch.cat([matrix.flatten(), torch.tensor([count])]).to(ranks.device)).cpu()
    matrix = summed[:-1].view(num_classes, num_classes)
    return Evaluation(scores(matrix), majority_baseline(matrix), int(summed[-1]), matrix, tuple(pictures))


def predictions(
    model: SegmentationModel,
    location: str,
    split: str,
    config: WindowConfig,
    *,
    manifest: Manifest,
    ranks: Ranks,
    precision: str = "fp32",
) -> Iterator[tuple[EvalSample, NDArray[np.uint8]]]:
    """This rank's samples of a split, each with its predicted classes, (H, W).

    Args:
        model: In evaluation mode until the last sample is out, then back in its mode.
        location: A prepared dataset.
        split: Its split.
        config: Window, stride, scales, flip.
        manifest: Of the dataset when the job began.
        ranks: Each rank takes its own samples.
        precision: fp32, bf16 or fp16; what the model computes in, the scores of pixels are always float32.

    Raises:
        DataError: damaged samples, or another dataset in this place meanwhile.
    """
    samples = eval_samples(
        location, split, rank=ranks.rank, world_size=ranks.world_size, content_id=manifest.content_id
    )
    was_training = model.training
    model.eval()
    for sample in samples:
        ranks.pulse.enter("validation")
        # Not around the loop: the setting is the thread's, and would hold in the caller between two samples.
        with torch.autocast(ranks.device.type, dtype=AUTOCAST.get(precision), enabled=precision in AUTOCAST):
            predicted = predict(model, sample.image, config, device=ranks.device)
        yield sample, predicted.cpu().numpy().astype(np.uint8, copy=False)
    model.train(was_training)


def scores_document(result: Evaluation, class_names: tuple[str, ...]) -> dict[str, Any]:
    """The figures of an evaluation as plain data; absent classes are null."""
    iou = {
        name: None if np.isnan(value) else round(float(value), 6)
        for name, value in zip(class_names, result.scores.iou, strict=True)
    }
    return {
        "miou": float(result.scores.miou),
        "pixel_accuracy": float(result.scores.pixel_accuracy),
        "mean_accuracy": float(result.scores.mean_accuracy),
        "baseline_miou": result.baseline_miou,
        "num_samples": result.num_samples,
        "iou": iou,
    }
