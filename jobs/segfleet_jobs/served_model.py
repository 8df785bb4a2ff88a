"""The registered model, as MLflow loads it: pictures in, label maps out. Travels with the model, together with
`segfleet_models`; needs neither the service nor the training code.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlflow
import numpy as np
from mlflow.pyfunc import PythonModel

from segfleet_models.inference import predict
from segfleet_models.stored_model import load_stored


class ServedSegmenter(PythonModel):  # type: ignore[misc]
    """Sliding-window inference with the settings the model was validated with."""

    def load_context(self, context: Any) -> None:
        """Build the model from its configuration and weights."""
        stored = load_stored(Path(context.artifacts["config"]), Path(context.artifacts["weights"]))
        self.class_names, self.palette = stored.class_names, stored.palette
        self._model, self._window = stored.model, stored.window

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
