"""Predictions as pictures: beside the truth, with the errors marked."""

from __future__ import annotations

import io
from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from segfleet_jobs.evaluation import Picture
from segfleet_pipelines.manifest import Manifest
from segfleet_pipelines.picture import overlay
from segfleet_pipelines.sheet import Row, compose_sheet

_WRONG = (230, 40, 40)
_IGNORED = (0, 0, 0)
_OPACITY = 0.7


def prediction_sheet(pictures: Sequence[Picture], manifest: Manifest) -> bytes:
    """PNG with a row a sample: picture, truth, prediction, and the wrong pixels in red; with a legend.

    Args:
        pictures: (key, image (H, W, 3), truth (H, W), prediction (H, W)) each.
        manifest: Names, colours, ignore index.
    """
    entries = list(zip(manifest.class_names, manifest.palette, strict=True))
    sheet = compose_sheet(
        "picture, truth, prediction, errors in red",
        [_row(picture, manifest) for picture in pictures],
        entries,
        ignored=_IGNORED,
    )
    buffer = io.BytesIO()
    sheet.save(buffer, format="PNG")
    return buffer.getvalue()


def encode_png(image: NDArray[np.uint8]) -> bytes:
    """An RGB picture (H, W, 3) as PNG bytes."""
    _, encoded = cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    return encoded.tobytes()


def errors_in_red(
    image: NDArray[np.uint8], truth: NDArray[np.uint8], predicted: NDArray[np.uint8], ignore_index: int
) -> NDArray[np.uint8]:
    """The picture in grey with wrong pixels red and ignored ones dark."""
    grey = np.repeat(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[..., None], 3, axis=2)
    ignored = truth == ignore_index
    grey[ignored] //= 3
    grey[(truth != predicted) & ~ignored] = _WRONG
    return grey


def _row(picture: Picture, manifest: Manifest) -> Row:
    key, image, truth, predicted = picture
    judged = (truth == predicted)[truth != manifest.ignore_index]
    told = f"{float(judged.mean()):.1%} of the pixels right" if judged.size else "no labelled pixel"
    views = [
        image,
        overlay(image, truth, manifest.palette, _OPACITY),
        overlay(image, predicted, manifest.palette, _OPACITY),
        errors_in_red(image, truth, predicted, manifest.ignore_index),
    ]
    return f"{key}  {told}", views
