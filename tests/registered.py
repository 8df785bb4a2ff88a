"""Small models as they are pulled from the registry, made without one."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import yaml

from segfleet_models.build import ModelConfig, build_segmenter
from segfleet_models.inference import WindowConfig
from segfleet_models.weights import save_weights


def make_pulled_model(
    folder: Path,
    class_names: Sequence[str] = ("ground", "red", "green"),
    *,
    window: WindowConfig | None = None,
    always: int | None = None,
    **changes: Any,
) -> Path:
    """A folder as `segfleet models pull` makes it, with random weights.

    Args:
        folder: To make.
        class_names: K names.
        window: How it predicts.
        always: The class that a linear model says everywhere.
        changes: Of the model's configuration.
    """
    torch.manual_seed(0)
    values = {"backbone": "test_vit", "patch_size": 8, "decoder": "linear", "img_size": 32} | changes
    config = ModelConfig(num_classes=len(class_names), **values)
    model = build_segmenter(config)
    if config.decoder == "linear":
        with torch.no_grad():
            model.decoder.head.weight.normal_()  # type: ignore[union-attr]
            if always is not None:
                model.decoder.head.bias[always] = 1000.0  # type: ignore[union-attr,index]
    (folder / "artifacts").mkdir(parents=True)
    save_weights(model, folder / "artifacts" / "model.safetensors")
    document = {
        "model": config.to_dict(),
        "class_names": list(class_names),
        "palette": [[40 * i % 256, 255 - 70 * i % 256, 90 * i % 256] for i in range(len(class_names))],
        "ignore_index": 255,
        "window": asdict(window or WindowConfig(32, 24)),
    }
    (folder / "artifacts" / "config.json").write_text(json.dumps(document))
    files = {"config": "artifacts/config.json", "weights": "artifacts/model.safetensors"}
    artifacts = {name: {"path": path, "uri": "unused"} for name, path in files.items()}
    description = {"flavors": {"python_function": {"artifacts": artifacts}}, "run_id": "run7"}
    (folder / "MLmodel").write_text(yaml.safe_dump(description))
    (folder / "registered_model_meta").write_text(yaml.safe_dump({"model_name": "tiny", "model_version": "3"}))
    return folder
