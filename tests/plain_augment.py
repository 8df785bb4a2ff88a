"""The reference's training transforms, plain and slow: what the fast augmentation is compared with.

Written from the description of the transforms: the whole picture is scaled, then cropped, mirrored and distorted, each
step drawing its own random numbers. Pictures are BGR as OpenCV decodes them. H, W pixels.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import cv2
import numpy as np

TRIES = 10


@dataclass
class PlainDraws:
    """What one sample's randomness came to.

    Attributes:
        size: Height and width after scaling.
        corner: Top and left of the crop in the scaled picture.
        tries: Candidates looked at.
        flip: Whether mirrored.
        brightness, contrast, saturation, hue: Parameters, None if not drawn.
        contrast_first: Whether contrast comes before saturation and hue.
    """

    size: tuple[int, int] = (0, 0)
    corner: tuple[int, int] = (0, 0)
    tries: int = 0
    flip: bool = False
    brightness: float | None = None
    contrast: float | None = None
    saturation: float | None = None
    hue: int | None = None
    contrast_first: bool = False


@dataclass
class PlainSample:
    """Picture (h, w, 3) in RGB, labels (h, w), and how they came about."""

    image: np.ndarray
    mask: np.ndarray
    draws: PlainDraws = field(default_factory=PlainDraws)


def plain_augment(
    image: np.ndarray,
    mask: np.ndarray,
    rng: np.random.Generator,
    *,
    short_side: int,
    max_ratio: float,
    crop: int,
    scales: tuple[float, float] = (0.5, 2.0),
    class_cap: float = 0.75,
    ignore_index: int = 255,
) -> PlainSample:
    """All steps on an RGB picture (H, W, 3) and its labels (H, W)."""
    draws = PlainDraws(size=scale_size(mask.shape, short_side, max_ratio, rng.uniform(*scales)))
    image, mask = scale(image, mask, draws.size)
    draws.corner, draws.tries = plain_corner(mask, crop, class_cap, ignore_index, rng)
    image, mask = cut(image, draws.corner, crop), cut(mask, draws.corner, crop)
    draws.flip = rng.random() < 0.5
    if draws.flip:
        image, mask = image[:, ::-1], mask[:, ::-1]
    draw_photometric(draws, rng)
    return PlainSample(distort_plainly(np.ascontiguousarray(image), draws), np.ascontiguousarray(mask), draws)


def scale_size(shape: tuple[int, ...], short_side: int, max_ratio: float, ratio: float) -> tuple[int, int]:
    """Height and width after scaling into the box of ratio times (max_ratio * short_side, short_side)."""
    height, width = shape
    long_box, short_box = int(ratio * max_ratio * short_side), int(ratio * short_side)
    factor = min(long_box / max(height, width), short_box / min(height, width))
    return int(height * factor + 0.5), int(width * factor + 0.5)


def scale(image: np.ndarray, mask: np.ndarray, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Picture bilinear, labels nearest."""
    return (
        cv2.resize(image, size[::-1], interpolation=cv2.INTER_LINEAR),
        cv2.resize(mask, size[::-1], interpolation=cv2.INTER_NEAREST),
    )


def cut(pixels: np.ndarray, corner: tuple[int, int], crop: int) -> np.ndarray:
    """At most crop x crop pixels from a corner."""
    return pixels[corner[0] : corner[0] + crop, corner[1] : corner[1] + crop]


def plain_corner(
    mask: np.ndarray, crop: int, class_cap: float, ignore_index: int, rng: np.random.Generator
) -> tuple[tuple[int, int], int]:
    """Corner of the first candidate that keeps the class cap, the eleventh unchecked; and how many were drawn."""
    for tries in range(1, TRIES + 1):
        corner = draw_corner(mask.shape, crop, rng)
        if keeps_cap(cut(mask, corner, crop), class_cap, ignore_index):
            return corner, tries
    return draw_corner(mask.shape, crop, rng), TRIES + 1


def draw_corner(shape: tuple[int, ...], crop: int, rng: np.random.Generator) -> tuple[int, int]:
    """Any corner of a crop inside the picture."""
    height, width = shape
    return int(rng.integers(max(height - crop, 0) + 1)), int(rng.integers(max(width - crop, 0) + 1))


def keeps_cap(labels: np.ndarray, class_cap: float, ignore_index: int) -> bool:
    """More than one class, and the commonest below the cap."""
    found, counts = np.unique(labels, return_counts=True)
    counts = counts[found != ignore_index]
    return len(counts) > 1 and counts.max() / counts.sum() < class_cap


def draw_photometric(draws: PlainDraws, rng: np.random.Generator) -> None:
    """Brightness, place of the contrast, contrast, saturation and hue."""
    if rng.random() < 0.5:
        draws.brightness = rng.uniform(-32, 32)
    draws.contrast_first = rng.random() < 0.5
    if rng.random() < 0.5:
        draws.contrast = rng.uniform(0.5, 1.5)
    if rng.random() < 0.5:
        draws.saturation = rng.uniform(0.5, 1.5)
    if rng.random() < 0.5:
        draws.hue = int(rng.integers(-18, 18))


def distort_plainly(rgb: np.ndarray, draws: PlainDraws) -> np.ndarray:
    """Each drawn step by itself on the BGR picture; RGB in and out."""
    image = rgb[..., ::-1].copy()
    if draws.brightness is not None:
        image = convert(image, 1.0, draws.brightness)
    if draws.contrast_first and draws.contrast is not None:
        image = convert(image, draws.contrast, 0.0)
    if draws.saturation is not None:
        hsv = cv2.cvtColor(image, cv2.COLOR_BGR2HSV)
        hsv[..., 1] = convert(hsv[..., 1], draws.saturation, 0.0)
        image = np.asarray(cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR))
    if draws.hue is not None:
        hsv = cv2.cvtColor(image, cv2.COLOR_BGR2HSV)
        hsv[..., 0] = (hsv[..., 0].astype(int) + draws.hue) % 180
        image = np.asarray(cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR))
    if not draws.contrast_first and draws.contrast is not None:
        image = convert(image, draws.contrast, 0.0)
    return image[..., ::-1].copy()


def convert(image: np.ndarray, alpha: float, beta: float) -> np.ndarray:
    """alpha * x + beta in float32, clipped and cut down to bytes."""
    return np.clip(image.astype(np.float32) * alpha + beta, 0, 255).astype(np.uint8)
