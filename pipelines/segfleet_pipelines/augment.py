"""The recipe's augmentations, in the reference code's order: scale, crop with a class cap, flip, colour.

H, W are pixels of the picture that comes in; all arrays are uint8, pictures RGB. One difference from the reference:
saturation and hue share one trip to HSV and back, which saves a rounding.
"""

from __future__ import annotations

import cv2
import numpy as np

from segfleet.spec.sections import AugmentSpec
from segfleet_pipelines.picture import Pixels

CROP_TRIES = 10
BRIGHTNESS = 32.0
CONTRAST = SATURATION = (0.5, 1.5)
HUE = 18  # of OpenCV's 180 steps


def augment(
    image: Pixels, mask: Pixels, config: AugmentSpec, crop: int, ignore_index: int, rng: np.random.Generator
) -> tuple[Pixels, Pixels]:
    """Augment one sample.

    Args:
        image: RGB, (H, W, 3).
        mask: Labels, (H, W).
        config: Which augmentations, and how strong.
        crop: Upper bound of the result's sides, pixels.
        ignore_index: Label that the class cap does not count.
        rng: All randomness; equal generators give equal results.

    Returns:
        Picture (h, w, 3) and mask (h, w) with h, w <= crop, not padded.
    """
    height, width = scaled_size(mask.shape[0], mask.shape[1], config, rng.uniform(config.scale_min, config.scale_max))
    mask = cv2.resize(mask, (width, height), interpolation=cv2.INTER_NEAREST)
    image = cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)
    top, left = choose_crop(mask, crop, config.class_cap, ignore_index, rng)
    window = np.s_[top : top + crop, left : left + crop]
    image, mask = image[window], mask[window]
    if rng.random() < config.flip:
        image, mask = image[:, ::-1], mask[:, ::-1]
    image, mask = np.ascontiguousarray(image), np.ascontiguousarray(mask)
    return (distort(image, rng) if config.photometric else image), mask


def scaled_size(height: int, width: int, config: AugmentSpec, scale: float) -> tuple[int, int]:
    """Height and width after scaling: the largest of the same ratio that fits into the recipe's box.

    The box is scale * S by max_ratio * scale * S, where S is the configured short side or else the picture's own.
    """
    base = config.short_side or min(height, width)
    long_box, short_box = int(scale * config.max_ratio * base), int(scale * base)
    factor = min(long_box / max(height, width), short_box / min(height, width))
    return max(1, int(height * factor + 0.5)), max(1, int(width * factor + 0.5))


def choose_crop(
    mask: Pixels, crop: int, class_cap: float, ignore_index: int, rng: np.random.Generator
) -> tuple[int, int]:
    """Top and left of a crop in which no class fills `class_cap` of the labelled pixels.

    Ten candidates are tried; the eleventh is taken as it is. A cap of 1 takes the first.
    """
    margin_h, margin_w = max(mask.shape[0] - crop, 0), max(mask.shape[1] - crop, 0)
    if margin_h == margin_w == 0:
        return 0, 0
    for _ in range(CROP_TRIES if class_cap < 1 else 0):
        top, left = _corner(margin_h, margin_w, rng)
        if _is_mixed(mask[top : top + crop, left : left + crop], class_cap, ignore_index):
            return top, left
    return _corner(margin_h, margin_w, rng)


def distort(image: Pixels, rng: np.random.Generator) -> Pixels:
    """Photometric distortion of an RGB picture (h, w, 3): brightness, contrast, saturation, hue, each with odds 1/2."""
    if rng.random() < 0.5:
        image = cv2.LUT(image, _linear_table(1.0, rng.uniform(-BRIGHTNESS, BRIGHTNESS)))
    contrast_first, contrast = rng.random() < 0.5, None
    if rng.random() < 0.5:
        contrast = _linear_table(rng.uniform(*CONTRAST), 0.0)
    if contrast is not None and contrast_first:
        image = cv2.LUT(image, contrast)
    image = _distort_hsv(image, rng)
    if contrast is not None and not contrast_first:
        image = cv2.LUT(image, contrast)
    return image


def pad_sample(image: Pixels, mask: Pixels, crop: int, ignore_index: int) -> tuple[Pixels, Pixels, tuple[int, int]]:
    """Put a sample into the upper left corner of a square.

    Returns:
        Picture (crop, crop, 3) with 0 right and below, mask (crop, crop) with `ignore_index` there, and the sample's
        own (height, width). The 0 is a placeholder: the model writes the mean colour beyond the extent.
    """
    height, width = mask.shape
    square = np.zeros((crop, crop, 3), np.uint8)
    labels = np.full((crop, crop), ignore_index, np.uint8)
    square[:height, :width] = image
    labels[:height, :width] = mask
    return square, labels, (height, width)


def _corner(margin_h: int, margin_w: int, rng: np.random.Generator) -> tuple[int, int]:
    return int(rng.integers(margin_h + 1)), int(rng.integers(margin_w + 1))


def _is_mixed(mask: Pixels, class_cap: float, ignore_index: int) -> bool:
    counts = cv2.calcHist([mask], [0], None, [256], [0, 256]).ravel()
    counts[ignore_index] = 0
    return int(np.count_nonzero(counts)) > 1 and float(counts.max()) / float(counts.sum()) < class_cap


def _distort_hsv(image: Pixels, rng: np.random.Generator) -> Pixels:
    saturation = rng.uniform(*SATURATION) if rng.random() < 0.5 else None
    hue = int(rng.integers(-HUE, HUE)) if rng.random() < 0.5 else None
    if saturation is None and hue is None:
        return image
    tables = np.tile(np.arange(256, dtype=np.uint8)[:, None], 3)
    if hue is not None:
        tables[:, 0] = (np.arange(256) + hue) % 180
    if saturation is not None:
        tables[:, 1] = _linear_table(saturation, 0.0)
    hsv = cv2.LUT(cv2.cvtColor(image, cv2.COLOR_RGB2HSV), tables.reshape(256, 1, 3))
    return np.asarray(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB), np.uint8)


def _linear_table(alpha: float, beta: float) -> Pixels:
    """alpha * x + beta for every byte x, clipped and cut down to a byte as the reference does for every pixel."""
    table: Pixels = np.clip(np.arange(256, dtype=np.float32) * alpha + beta, 0, 255).astype(np.uint8)
    return table
