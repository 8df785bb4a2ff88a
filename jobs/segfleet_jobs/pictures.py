"""Pictures for people: predictions beside the truth, curves, bars."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from segfleet_jobs.evaluation import Picture
from segfleet_pipelines.manifest import Manifest
from segfleet_pipelines.picture import overlay

ROW_PX = 200
GAP_PX = 6
LEGEND_ROW_PX = 26
_WHITE = 255
_WRONG = (230, 40, 40)


def prediction_sheet(pictures: Sequence[Picture], manifest: Manifest) -> bytes:
    """PNG with a row a sample: picture, truth, prediction and, in red, the wrong pixels; a legend below.

    Args:
        pictures: (key, image (H, W, 3), truth (H, W), prediction (H, W)) each.
        manifest: Names, colours, ignore index.
    """
    rows = [_row(picture, manifest) for picture in pictures]
    width = max(row.shape[1] for row in rows)
    stacked = np.concatenate([_widen(row, width) for row in rows] + [_legend(manifest, width)])
    return encode_png(stacked)


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


def _row(picture: Picture, manifest: Manifest) -> NDArray[np.uint8]:
    _, image, truth, predicted = picture
    tiles = [
        image,
        overlay(image, truth, manifest.palette, 0.7),
        overlay(image, predicted, manifest.palette, 0.7),
        errors_in_red(image, truth, predicted, manifest.ignore_index),
    ]
    scale = ROW_PX / image.shape[0]
    size = (max(1, round(image.shape[1] * scale)), ROW_PX)
    # Small pictures are shown pixel by pixel, large ones smoothed.
    mode = cv2.INTER_AREA if scale < 1 else cv2.INTER_NEAREST
    gap = np.full((ROW_PX, GAP_PX, 3), _WHITE, np.uint8)
    parts: list[NDArray[np.uint8]] = []
    for tile in tiles:
        parts += [np.asarray(cv2.resize(tile, size, interpolation=mode), np.uint8), gap]
    row = np.concatenate(parts[:-1], axis=1)
    return np.concatenate([row, np.full((GAP_PX, row.shape[1], 3), _WHITE, np.uint8)])


def _widen(row: NDArray[np.uint8], width: int) -> NDArray[np.uint8]:
    return np.pad(row, ((0, 0), (0, width - row.shape[1]), (0, 0)), constant_values=_WHITE)


def _legend(manifest: Manifest, width: int) -> NDArray[np.uint8]:
    """Swatches with class names, wrapped to the width; says what the four columns are."""
    font, size = cv2.FONT_HERSHEY_SIMPLEX, 0.45
    entries: list[tuple[str, tuple[int, int, int] | None]] = [("picture | truth | prediction | errors (red)", None)]
    entries += [(name, (r, g, b)) for name, (r, g, b) in zip(manifest.class_names, manifest.palette, strict=True)]
    places, x, y = [], GAP_PX, 0
    for text, colour in entries:
        needed = cv2.getTextSize(text, font, size, 1)[0][0] + 34
        if x + needed > width and x > GAP_PX:
            x, y = GAP_PX, y + LEGEND_ROW_PX
        places.append((text, colour, x, y))
        x += needed
        if colour is None:
            x, y = GAP_PX, y + LEGEND_ROW_PX
    canvas = np.full((y + LEGEND_ROW_PX, width, 3), _WHITE, np.uint8)
    for text, colour, left, top in places:
        if colour is not None:
            cv2.rectangle(canvas, (left, top + 6), (left + 18, top + 20), colour, -1)
        start = left + (24 if colour is not None else 0)
        cv2.putText(canvas, text, (start, top + 18), font, size, (20, 20, 20), 1, cv2.LINE_AA)
    return canvas
