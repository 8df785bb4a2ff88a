"""A model as other programs take it: raw pictures in, labels and pixel logits out, one call and no sliding window.

Shapes: N pictures, H W pixels (fixed), K classes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from segfleet_models.segmenter import SegmentationModel

INPUT, OUTPUTS = "pictures", ("labels", "logits")

# Raw pictures to labels and logits, as PicturesToLabels or as the exported program does it.
Answer = Callable[[Tensor], tuple[Tensor, Tensor]]


class PicturesToLabels(nn.Module):
    """The model with all that stands before and behind it: normalisation, upsampling, the choice of the class.

    Args:
        model: In evaluation mode.
        protocol: How patches' logits become pixels', see `WindowConfig`.
    """

    def __init__(self, model: SegmentationModel, protocol: Literal["reference", "mmseg"] = "reference") -> None:
        super().__init__()
        self.model, self._protocol = model, protocol
        self._dtype = torch.uint8 if model.num_classes <= 255 else torch.int32

    def forward(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        """Label every pixel.

        Args:
            pictures: RGB, uint8, (N, H, W, 3).

        Returns:
            Labels (N, H, W), uint8, or int32 for more than 255 classes; logits (N, K, H, W), float32.
        """
        size = (pictures.shape[1], pictures.shape[2])
        patch_logits = self.model(self.model.normalise(pictures))
        if self._protocol == "mmseg":
            logits = F.interpolate(patch_logits, size=size, mode="bilinear", align_corners=False)
        else:
            logits = self.model.upsample(patch_logits, size)
        return logits.argmax(dim=1).to(self._dtype), logits


def export_program(module: PicturesToLabels, size: tuple[int, int]) -> ExportedProgram:
    """Trace a model for pictures of one size (H, W), any number at a time."""
    # Two pictures: a program traced with one would take no more than one.
    example = torch.zeros(2, *size, 3, dtype=torch.uint8)
    with torch.no_grad():
        return torch.export.export(module, (example,), dynamic_shapes=({0: Dim("batch", min=1)},))


@dataclass(frozen=True)
class Parity:
    """How far an exported model is from the one it was made of.

    Attributes:
        max_difference: Largest absolute difference of logits.
        logit_range: Largest absolute logit, which that difference is to be seen beside.
        agreement: Share of pixels of the same label.
    """

    max_difference: float
    logit_range: float
    agreement: float

    @property
    def holds(self) -> bool:
        """Only rounding lies between the two."""
        return self.max_difference <= 1e-3 * max(1.0, self.logit_range) and self.agreement >= 0.999


def compare(module: PicturesToLabels, other: Answer, size: tuple[int, int]) -> Parity:
    """Run both on random pictures, one at a time and three at a time."""
    generator = torch.Generator().manual_seed(0)
    difference = logit_range = 0.0
    equal, count = 0, 0
    for batch in (1, 3):
        pictures = torch.randint(0, 256, (batch, *size, 3), generator=generator, dtype=torch.uint8)
        with torch.no_grad():
            labels, logits = module(pictures)
            other_labels, other_logits = other(pictures)
        if not (logits.isfinite().all() and other_logits.isfinite().all()):
            return Parity(float("inf"), logit_range, 0.0)
        difference = max(difference, float((logits - other_logits).abs().max()))
        logit_range = max(logit_range, float(logits.abs().max()))
        equal, count = equal + int((labels == other_labels).sum()), count + labels.numel()
    return Parity(difference, logit_range, equal / count)
