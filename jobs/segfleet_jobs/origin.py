"""What a model version says of its making: code, spec, weights it began with, size, licences."""

from __future__ import annotations

import json
import math
from pathlib import Path

from safetensors import safe_open

from segfleet.spec.kinds import TrainSpec
from segfleet.spec.resolve import to_document
from segfleet_jobs.version import code_version
from segfleet_models.encoder import weights_licence

UNKNOWN = "unknown"
# What the service takes for one tag.
_LONGEST_TAG = 8000


def training_tags(spec: TrainSpec, weights: Path) -> dict[str, str]:
    """Tags of a version that a training has made.

    Nothing that is prepared here records under which licence its pictures are, so that is said to be unknown.

    Args:
        spec: Of the training.
        weights: The model.safetensors.
    """
    text = json.dumps(to_document(spec), sort_keys=True)
    base, licence = _base(spec)
    tags = {
        "segfleet.code_version": code_version(),
        "segfleet.base": base,
        "segfleet.licence.data": UNKNOWN,
        "segfleet.licence.weights": licence,
        **size_tags(weights),
    }
    return {**tags, "segfleet.spec": text} if len(text) <= _LONGEST_TAG else tags


def size_tags(weights: Path) -> dict[str, str]:
    """Number of values in a model.safetensors, and its bytes."""
    with safe_open(weights, "pt") as file:
        values = sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118
    return {"segfleet.parameters": str(values), "segfleet.bytes": str(weights.stat().st_size)}


def _base(spec: TrainSpec) -> tuple[str, str]:
    """What the training began with, and its licence."""
    pretrained = spec.model.pretrained
    if pretrained is False:
        return "random", "none, it began with random weights"
    if isinstance(pretrained, str):
        return f"file {Path(pretrained).name}", UNKNOWN
    return f"{spec.model.backbone} of timm", weights_licence(spec.model.backbone) or UNKNOWN
