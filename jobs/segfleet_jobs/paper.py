"""A result beside the paper's: only where model, dataset, pictures and scales are the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

import yaml

from segfleet.spec.recipes import variant_fields

_MULTI_SCALES = 6


@dataclass(frozen=True, slots=True)
class Scored:
    """What was scored, and how.

    Attributes:
        dataset: The prepared dataset's name.
        num_samples: Pictures that were scored.
        model: arch, backbone, patch_size, decoder, decoder_layers.
        crop: Side of the training crop, pixels.
        scales: Of the evaluation.
        flip: Whether flipped pictures were averaged too.
        miou: The result, 0..1.
    """

    dataset: str
    num_samples: int
    model: Mapping[str, Any]
    crop: int
    scales: Sequence[float]
    flip: bool
    miou: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """Our mIoU beside one of the paper's, per cent.

    Attributes:
        table: Of the paper.
        variant: The paper's model.
        scales: "single" or "multi".
        ours: Our figure.
        paper: The paper's.
    """

    table: int
    variant: str
    scales: str
    ours: float
    paper: float

    @property
    def difference(self) -> float:
        """Ours less the paper's, in points."""
        return self.ours - self.paper


def compare(scored: Scored) -> tuple[list[Comparison], str]:
    """The paper's figures for the same thing; where there are none, why.

    Returns:
        The comparisons, and the reason if there are none (else empty).
    """
    document = paper_figures()
    dataset = document["datasets"].get(scored.dataset)
    if dataset is None:
        return [], f"the paper has no figures for {scored.dataset!r}"
    if scored.num_samples not in dataset["samples"]:
        return [], (
            f"scored on {scored.num_samples} pictures, the paper's figures for {scored.dataset} are of "
            f"{dataset['samples'][0]}"
        )
    scales = _scales(scored)
    found = [
        Comparison(row["table"], row["variant"], row["scales"], 100 * scored.miou, row["miou"])
        for row in document["rows"]
        if row["dataset"] == scored.dataset
        and row["scales"] == scales
        and row.get("crop", dataset["crop"]) == scored.crop
        and _is_variant(scored.model, row["variant"], dataset["decoder_layers"])
    ]
    return found, "" if found else f"the paper has no {scales}-scale figure of this model and crop on {scored.dataset}"


def paper_figures() -> dict[str, Any]:
    """The table of the paper's figures."""
    text = resources.files("segfleet_jobs").joinpath("paper.yaml").read_text(encoding="utf-8")
    document: dict[str, Any] = yaml.safe_load(text)
    return document


def _scales(scored: Scored) -> str:
    if list(scored.scales) == [1.0] and not scored.flip:
        return "single"
    return "multi" if len(scored.scales) == _MULTI_SCALES and scored.flip else "other"


def _is_variant(model: Mapping[str, Any], variant: str, decoder_layers: int) -> bool:
    wanted = {"arch": "segmenter", **variant_fields(variant)}
    if wanted["decoder"] == "mask":
        wanted["decoder_layers"] = decoder_layers
    return all(model.get(name) == value for name, value in wanted.items())
