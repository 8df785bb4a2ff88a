"""A model as it is stored for use: one JSON that says everything, and the weights beside it.

Travels with every registered model, so that what MLflow loads and what the commands load is read by the same code.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segfleet_models.build import ModelConfig, build_segmenter
from segfleet_models.inference import WindowConfig
from segfleet_models.segmenter import SegmentationModel
from segfleet_models.weights import load_weights


@dataclass(frozen=True)
class StoredModel:
    """A model that is ready to predict.

    Attributes:
        model: With its weights, in evaluation mode.
        config: Its architecture.
        class_names: One a class.
        palette: RGB colour of each class, 0..255.
        ignore_index: Label of the training data that was no class.
        window: How the model was validated.
        document: The JSON as it is, with what was said besides (scores, step).
    """

    model: SegmentationModel
    config: ModelConfig
    class_names: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    ignore_index: int
    window: WindowConfig
    document: Mapping[str, Any]


def load_stored(config_path: Path, weights_path: Path) -> StoredModel:
    """Build a stored model from its configuration and weights; nothing in the files can run.

    Raises:
        ValueError: a file cannot be read, says too little, or does not fit the other.
    """
    try:
        document = json.loads(config_path.read_text(encoding="utf-8"))
        config = ModelConfig.from_dict(document["model"])
        window = document["window"]
        stored = StoredModel(
            model=build_segmenter(config, pretrained=False),
            config=config,
            class_names=tuple(document["class_names"]),
            palette=tuple((red, green, blue) for red, green, blue in document["palette"]),
            ignore_index=int(document["ignore_index"]),
            window=WindowConfig(**{**window, "scales": tuple(window["scales"])}),
            document=document,
        )
    except (OSError, KeyError, TypeError, OverflowError, RecursionError, json.JSONDecodeError) as error:
        raise ValueError(f"{config_path.name} describes no model: {error!r}") from error
    if not len(stored.class_names) == len(stored.palette) == config.num_classes:
        raise ValueError(
            f"{config_path.name} has {len(stored.class_names)} class names and {len(stored.palette)} colours "
            f"for {config.num_classes} classes"
        )
    load_weights(stored.model, weights_path)
    stored.model.eval()
    return stored
