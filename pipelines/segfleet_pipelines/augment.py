"""The recipe's augmentations, in the reference code's order: scale, crop with a class cap, colour and flip.

Nothing is done twice or for nothing: scale and window are drawn first, on paper; the class cap is tested on the
source's labels; only the window is decoded, and only the window is resized. Pictures are RGB; everything is uint8. What
is exact and what is rounded: docs/decisions/0006-augmentation.md.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from segfleet.spec.sections import AugmentSpec
from segfleet_pipelines.decode import decode_window
from segfleet_pipelines.photometric import NUM_DRAWS, Jitter, apply_jitter, draw_jitter
from segfleet_pipelines.picture import Pixels, Window

CROP_TRIES = 10

_COUNTED_SIDE = 128  # pixels that the class cap looks at, along each side of a window


@dataclass(frozen=True, slots=True)
class Augmented:
    """One sample as the batch takes it, not padded.

    Attributes:
        image: RGB, (h, w, 3).
        mask: Labels, (h, w).
        jitter: What is left to the device: the fields of a `photometric.Jitter`, (7,); None if nothing is.
    """

    image: Pixels
    mask: Pixels
    jitter: npt.NDArray[np.float32] | None


@dataclass(frozen=True, slots=True)
class Crop:
    """A window of the source, and the size it comes out with.

    Attributes:
        window: In source pixels.
        height: Of the result, pixels.
        width: Of the result, pixels.
    """

    window: Window
    height: int
    width: int


def augment_sample(
    image: bytes, mask: Pixels, config: AugmentSpec, crop: int, ignore_index: int, rng: np.random.Generator
) -> Augmented:
    """Augment one sample.

    Args:
        image: JPEG or PNG.
        mask: Labels, (H, W); only read.
        config: Which augmentations, and how strong.
        crop: Upper bound of the result's sides, pixels.
        ignore_index: Label that the class cap does not count.
        rng: All randomness. The same amount is drawn whatever happens, so where the jitter is applied changes nothing.

    Returns:
        Picture and mask with sides <= crop, perhaps as views.

    Raises:
        DataError: the picture is unreadable, or not of the mask's size.
    """
    draws = rng.random(1 + 2 * (CROP_TRIES + 1) + NUM_DRAWS)
    source_height, source_width = mask.shape
    scale = config.scale_min + (config.scale_max - config.scale_min) * float(draws[0])
    size = scaled_size(source_height, source_width, config, scale)
    chosen = choose_crop(mask, size, crop, config.class_cap, ignore_index, draws[1:-NUM_DRAWS].reshape(-1, 2))
    picture = _resized(decode_window(image, chosen.window, (source_height, source_width)), chosen, cv2.INTER_LINEAR)
    labels = _resized(chosen.window.of(mask), chosen, cv2.INTER_NEAREST)
    jitter = draw_jitter(config, draws[-NUM_DRAWS:])
    if config.on_device:
        return Augmented(picture, labels, jitter)
    return Augmented(*apply_jitter(picture, labels, Jitter(*jitter.tolist())), None)


def scaled_size(height: int, width: int, config: AugmentSpec, scale: float) -> tuple[int, int]:
    """Height and width after scaling: the largest of the same ratio that fits into the recipe's box.

    The box is scale * S by max_ratio * scale * S, where S is the configured short side or else the picture's own.
    """
    base = config.short_side or min(height, width)
    long_box, short_box = int(scale * config.max_ratio * base), int(scale * base)
    factor = min(long_box / max(height, width), short_box / min(height, width))
    return max(1, int(height * factor + 0.5)), max(1, int(width * factor + 0.5))


def choose_crop(
    mask: Pixels,
    size: tuple[int, int],
    crop: int,
    class_cap: float,
    ignore_index: int,
    draws: npt.NDArray[np.float64],
) -> Crop:
    """A crop of the scaled picture in which no class fills `class_cap` of the labelled pixels.

    Each candidate but the last is taken only if it keeps the cap; the last is taken as it is. A cap of 1 takes the
    first.

    Args:
        mask: Labels before scaling, (H, W).
        size: Height and width after scaling, pixels.
        crop: Upper bound of the result's sides, pixels.
        class_cap: Share that no class may reach.
        ignore_index: Label that is not counted.
        draws: Place of each candidate's upper left corner in its range, in [0, 1), (N, 2).
    """
    (source_height, source_width), (scaled_height, scaled_width) = mask.shape, size
    height, width = min(scaled_height, crop), min(scaled_width, crop)
    is_whole = size == (height, width)
    candidates = draws if class_cap < 1 and not is_whole else draws[-1:]
    for number, (down, along) in enumerate(candidates.tolist(), 1):
        top, bottom = _source_span(down, height, scaled_height, source_height)
        left, right = _source_span(along, width, scaled_width, source_width)
        window = Window(top, left, bottom - top, right - left)
        if number == len(candidates) or _is_mixed(window.of(mask), class_cap, ignore_index):
            break
    return Crop(window, height, width)


def _source_span(draw: float, length: int, scaled: int, source: int) -> tuple[int, int]:
    """Source pixels [begin, end) of a drawn span of the scaled side, to the nearest whole pixel, at least one."""
    start = int(draw * (scaled - length + 1))
    begin = min(int(start * source / scaled + 0.5), source - 1)
    return begin, max(begin + 1, int((start + length) * source / scaled + 0.5))


def _is_mixed(labels: Pixels, class_cap: float, ignore_index: int) -> bool:
    """Whether no class reaches the cap among the labelled pixels, counted on a grid of about 128 x 128 of them.

    Regions of a class are far larger than the grid's step (every fourth pixel of a 512 crop), so the counted share is
    within a percent of the true one, and only crops that near the cap can be judged otherwise. A window of one class,
    or with specks of others, has a share of 1 or nearly: the rule that there must be two classes is kept too.
    """
    rows, columns = (max(1, side // _COUNTED_SIDE) for side in labels.shape)
    counts = np.bincount(labels[rows // 2 :: rows, columns // 2 :: columns].ravel(), minlength=256)
    counts[ignore_index] = 0
    return bool(counts.max() < class_cap * counts.sum())


def _resized(pixels: Pixels, crop: Crop, interpolation: int) -> Pixels:
    if pixels.shape[:2] == (crop.height, crop.width):
        return pixels
    return np.asarray(cv2.resize(pixels, (crop.width, crop.height), interpolation=interpolation), np.uint8)
