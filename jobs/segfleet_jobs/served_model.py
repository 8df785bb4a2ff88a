"""The registered model, as MLflow loads it: pictures in, label maps out. Travels with the model, together with
`segfleet_models`; needs neither the service nor the training code.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
from mlflow.pyfunc import PythonModel

from segfleet_models.build import ModelConfig, build_segmenter
from segfleet_models.inference import WindowConfig, predict
from segfleet_models.weights import load_weights


class ServedSegmenter(PythonModel):  # type: ignore[misc]
    """Sliding-window inference with the settings the model was validated with."""

    def load_context(self, context: Any) -> None:
        """Build the model from its configuration and weights."""
        config = json.loads(Path(context.artifacts["config"]).read_text(encoding="utf-8"))
        self.class_names = tuple(config["class_names"])
        self.palette = tuple(tuple(colour) for colour in config["palette"])
        window = config["window"]
        self._window = WindowConfig(**{**window, "scales": tuple(window["scales"])})
        self._model = build_segmenter(ModelConfig.from_dict(config["model"]), pretrained=False)
        load_weights(self._model, Path(context.artifacts["weights"]))
        self._model.eval()

    # MLflow would take type hints for a schema and warn of ours; the logged signature says it instead.
    def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def]  # noqa: ARG002
        """Label maps of pictures of one size.

        Args:
            context: MLflow's, unused.
            model_input: RGB pictures, (N, H, W, 3) uint8.
            params: None.

        Returns:
            Class indices, (N, H, W) int64.
        """
        pictures = np.asarray(model_input)
        return np.stack([np.asarray(predict(self._model, picture, self._window)) for picture in pictures]).astype(
            np.int64
        )


mlflow.models.set_model(ServedSegmenter())
