"""Photometric distortion and flip: the drawn parameters, and what they do to bytes on the CPU.

The steps are the reference's: brightness, contrast (before or after the next two), saturation, hue, each with odds 1/2,
each clipped and cut down to a byte. Steps with nothing between them are one lookup table, which is exact; saturation
and hue share one trip to HSV and back, where the reference makes two.
"""

from __future__ import annotations

from typing import Generic, NamedTuple, TypeVar

import cv2
import numpy as np
import numpy.typing as npt

from segfleet.spec.sections import AugmentSpec
from segfleet_pipelines.picture import Pixels

NUM_DRAWS = 10
BRIGHTNESS = 32.0
CONTRAST = SATURATION = (0.5, 1.5)
HUE = 18  # of OpenCV's 180 steps

_Number = TypeVar("_Number")


class Jitter(NamedTuple, Generic[_Number]):
    """What happens to one picture (or, as vectors, to a batch) after the crop.

    Attributes:
        flip: 1: mirrored, 0: not.
        brightness: Added to each byte; 0: nothing.
        contrast_before: Factor ahead of saturation and hue; 1: nothing.
        hsv: 1: saturation or hue was drawn, 0: the picture makes no trip to HSV, which alone would change it.
        saturation: Factor; 1: nothing.
        hue: Whole steps of 2 degrees; 0: nothing.
        contrast_after: Factor behind saturation and hue; 1: nothing.
    """

    flip: _Number
    brightness: _Number
    contrast_before: _Number
    hsv: _Number
    saturation: _Number
    hue: _Number
    contrast_after: _Number


def draw_jitter(config: AugmentSpec, draws: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
    """The fields of a `Jitter`, (7,), from NUM_DRAWS numbers in [0, 1)."""
    flip, *odds, brightness, contrast, saturation, hue = draws.tolist()
    has_brightness, has_contrast, is_before, has_saturation, has_hue = (
        config.photometric and chance < 0.5 for chance in odds
    )
    factor = _between(CONTRAST, contrast) if has_contrast else 1.0
    return np.array(
        Jitter(
            flip=float(flip < config.flip),
            brightness=_between((-BRIGHTNESS, BRIGHTNESS), brightness) if has_brightness else 0.0,
            contrast_before=factor if is_before else 1.0,
            hsv=float(has_saturation or has_hue),
            saturation=_between(SATURATION, saturation) if has_saturation else 1.0,
            hue=float(int(2 * HUE * hue) - HUE) if has_hue else 0.0,
            contrast_after=1.0 if is_before else factor,
        ),
        np.float32,
    )


def apply_jitter(image: Pixels, mask: Pixels, jitter: Jitter[float]) -> tuple[Pixels, Pixels]:
    """Distort an RGB picture (h, w, 3), then mirror it and its labels (h, w) if so drawn."""
    image = distort(image, jitter)
    if jitter.flip:
        return np.asarray(cv2.flip(image, 1), np.uint8), np.asarray(cv2.flip(mask, 1), np.uint8)
    return image, mask


def distort(image: Pixels, jitter: Jitter[float]) -> Pixels:
    """Brightness, contrast, saturation and hue of an RGB picture (h, w, 3); itself if nothing was drawn."""
    identity = np.arange(256, dtype=np.uint8)
    table = linear(linear(identity, 1.0, jitter.brightness), jitter.contrast_before, 0.0)
    if jitter.hsv:
        image = _distort_hsv(_look_up(image, table), jitter)
        table = identity
    return _look_up(image, linear(table, jitter.contrast_after, 0.0))


def linear(values: Pixels, alpha: float, beta: float) -> Pixels:
    """alpha * x + beta for every byte x, clipped and cut down to a byte as the reference does for every pixel."""
    if alpha == 1.0 and beta == 0.0:
        return values
    scaled = values.astype(np.float32) * np.float32(alpha) + np.float32(beta)
    result: Pixels = np.clip(scaled, 0, 255).astype(np.uint8)
    return result


def _distort_hsv(image: Pixels, jitter: Jitter[float]) -> Pixels:
    identity = np.arange(256, dtype=np.uint8)
    hue, saturation, value = cv2.split(cv2.cvtColor(image, cv2.COLOR_RGB2HSV))
    if jitter.hue:
        hue = _look_up(hue, ((np.arange(256) + int(jitter.hue)) % 180).astype(np.uint8))
    saturation = _look_up(saturation, linear(identity, jitter.saturation, 0.0))
    return np.asarray(cv2.cvtColor(cv2.merge((hue, saturation, value)), cv2.COLOR_HSV2RGB), np.uint8)


def _look_up(pixels: Pixels, table: Pixels) -> Pixels:
    if np.array_equal(table, np.arange(256)):
        return pixels
    return np.asarray(cv2.LUT(pixels, table), np.uint8)


def _between(bounds: tuple[float, float], share: float) -> float:
    low, high = bounds
    return low + (high - low) * share
