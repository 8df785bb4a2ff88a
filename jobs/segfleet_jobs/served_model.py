"""The registered model, as MLflow loads it: pictures in, label maps out. Travels with the model, together with
`segfleet_models`; needs neither the service nor the training code.
"""

from __future__ import annotations

import base64
import binascii
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
from mlflow.pyfunc import PythonModel
from PIL import Image, ImageOps, UnidentifiedImageError

from segfleet_models.inference import predict
from segfleet_models.stored_model import load_stored

# A small file can hold a huge picture.
MAX_PIXELS = 200_000_000
_FORMATS = ("JPEG", "PNG", "TIFF", "WEBP", "BMP", "GIF")
# What a palette picture can count to.
_MOST_IN_PALETTE = 256


class ServedSegmenter(PythonModel):  # type: ignore[misc]
    """Sliding-window inference with the settings the model was validated with."""

    def load_context(self, context: Any) -> None:
        """Build the model from its configuration and weights."""
        stored = load_stored(Path(context.artifacts["config"]), Path(context.artifacts["weights"]))
        self.class_names, self.palette = stored.class_names, stored.palette
        self._model, self._window = stored.model, stored.window

    # MLflow would take type hints for a schema, and none of its schemas holds all of these.
    def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def]  # noqa: ARG002
        """Label maps of pictures of any sizes.

        Args:
            context: MLflow's, unused.
            model_input: One RGB picture (H, W, 3), a batch (N, H, W, 3), or a list of pictures of different sizes, with
                values 0..255. Or files of pictures (JPEG, PNG, ...), as bytes or in base64: one, a list, or the only
                column of a table.
            params: None.

        Returns:
            Class indices, int64: (H, W), (N, H, W) or a list. Of base64, PNG pictures in base64, whose values are class
            indices, with the classes' colours as palette.

        Raises:
            ValueError: no picture, a damaged or too large one, or values beyond 0..255.
        """
        if hasattr(model_input, "iloc"):
            model_input = _only_column(model_input)
        if isinstance(model_input, str | bytes):
            return self._label(model_input)
        if isinstance(model_input, np.ndarray):
            if model_input.dtype.kind in "OSU":
                # `mlflow models serve` hands over a list of texts in this form.
                model_input = np.ravel(model_input).tolist()
            elif model_input.ndim == 3:
                return self._label(model_input)
            else:
                return np.stack([self._label(picture) for picture in _batch(model_input)])
        return [self._label(item) for item in model_input]

    def _label(self, item: Any) -> Any:
        if not isinstance(item, str | bytes):
            return self._labels(_checked(np.asarray(item)))
        if isinstance(item, bytes):
            return self._labels(_decoded(item))
        return self._encoded(self._labels(_decoded(_from_base64(item))))

    def _labels(self, picture: Any) -> Any:
        return np.asarray(predict(self._model, picture, self._window)).astype(np.int64)

    def _encoded(self, labels: Any) -> str:
        if len(self.class_names) <= _MOST_IN_PALETTE:
            picture = Image.fromarray(labels.astype(np.uint8), "L")
            picture.putpalette([part for colour in self.palette for part in colour])
        else:
            picture = Image.fromarray(labels.astype(np.uint16))
        out = io.BytesIO()
        picture.save(out, "PNG")
        return base64.b64encode(out.getvalue()).decode()


def _only_column(table: Any) -> Sequence[Any]:
    if table.shape[1] != 1:
        raise ValueError(f"a table of {table.shape[1]} columns; send one column, of pictures in base64")
    return list(table.iloc[:, 0])


def _batch(pictures: Any) -> Any:
    if pictures.ndim != 4 or not len(pictures):
        raise ValueError(f"pictures of shape {pictures.shape}; send (H, W, 3), (N, H, W, 3) or a list of pictures")
    return pictures


def _checked(picture: Any) -> Any:
    """The picture as uint8, (H, W, 3)."""
    if picture.ndim != 3 or picture.shape[2] != 3 or picture.dtype.kind not in "ui":
        raise ValueError(f"a picture of shape {picture.shape} and type {picture.dtype}; send (H, W, 3) of 0..255")
    if picture.size and (picture.min() < 0 or picture.max() > 255):
        raise ValueError("a picture with values beyond 0..255")
    return picture.astype(np.uint8, copy=False)


def _from_base64(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError(f"no base64: {error}") from error


def _decoded(data: bytes) -> Any:
    """A picture file as uint8, (H, W, 3), the way a viewer shows it."""
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ValueError(f"{image.width}x{image.height} pixels are more than {MAX_PIXELS}")
            return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    except UnidentifiedImageError as error:
        raise ValueError(f"no picture of a known format ({', '.join(_FORMATS)})") from error
    except (OSError, Image.DecompressionBombError) as error:
        raise ValueError(f"a damaged or too large picture: {error}") from error


mlflow.models.set_model(ServedSegmenter())
