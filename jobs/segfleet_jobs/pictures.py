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
from segfleet_pipelines.sheet import Row, compose_sheet, striped

# Orange on grey differs in hue and in brightness: it is seen with any kind of colour blindness, and in print.
_WRONG = (255, 150, 0)
# The brightest grey behind the errors, of 255.
_DIMMED = 150
_OPACITY = 0.7


def prediction_sheet(
    pictures: Sequence[Picture],
    manifest: Manifest,
    title: str = "picture, truth, prediction, errors in orange",
) -> bytes:
    """PNG with a row a sample: picture, truth, prediction, and the wrong pixels in orange; ignored ones are striped.

    Args:
        pictures: (key, image (H, W, 3), truth (H, W), prediction (H, W)) each.
        manifest: Names, colours, ignore index; the legend holds the classes that are to be seen.
        title: Head line.
    """
    seen = np.unique(
        np.concatenate([labels.ravel() for *_, truth, predicted in pictures for labels in (truth, predicted)])
    )
    entries = [(manifest.class_names[i], manifest.palette[i]) for i in seen.tolist() if i < manifest.num_classes]
    sheet = compose_sheet(title, [_row(picture, manifest) for picture in pictures], [*entries, ("wrong", _WRONG)])
    buffer = io.BytesIO()
    sheet.save(buffer, format="PNG")
    return buffer.getvalue()


def encode_png(image: NDArray[np.uint8]) -> bytes:
    """An RGB picture (H, W, 3) as PNG bytes."""
    _, encoded = cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    return encoded.tobytes()


def error_map(
    image: NDArray[np.uint8], truth: NDArray[np.uint8], predicted: NDArray[np.uint8], ignore_index: int
) -> NDArray[np.uint8]:
    """The picture in dim grey with wrong pixels orange and ignored ones striped, (H, W, 3)."""
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.uint16) * _DIMMED // 255
    marked = np.repeat(grey.astype(np.uint8)[..., None], 3, axis=2)
    ignored = truth == ignore_index
    marked[(truth != predicted) & ~ignored] = _WRONG
    return striped(marked, ignored)


def _row(picture: Picture, manifest: Manifest) -> Row:
    key, image, truth, predicted = picture
    ignored = truth == manifest.ignore_index
    judged = (truth == predicted)[~ignored]
    told = f"{float(judged.mean()):.1%} of the pixels right" if judged.size else "no labelled pixel"
    views = [
        image,
        striped(overlay(image, truth, manifest.palette, _OPACITY), ignored),
        overlay(image, predicted, manifest.palette, _OPACITY),
        error_map(image, truth, predicted, manifest.ignore_index),
    ]
    return f"{key}  {told}", views
