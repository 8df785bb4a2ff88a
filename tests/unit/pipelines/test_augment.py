from __future__ import annotations

import cv2
import numpy as np
import pytest

from segfleet.spec.sections import AugmentSpec
from segfleet_pipelines.augment import augment, choose_crop, distort, pad_sample, scaled_size

PLAIN = {"scale_min": 1.0, "scale_max": 1.0, "flip": 0.0, "photometric": False}


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    return rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("size", "short_side", "max_ratio", "scale", "expected"),
    [
        ((300, 400), 512, 4.0, 1.0, (512, 683)),  # the short side becomes 512
        ((400, 300), 512, 4.0, 0.5, (341, 256)),
        ((100, 1000), 512, 4.0, 1.0, (205, 2048)),  # too long: the long side becomes 4 * 512
        ((1024, 2048), 1024, 2.0, 2.0, (2048, 4096)),
        ((360, 480), None, 8.0, 0.5, (180, 240)),  # no short side given: the picture's own
        ((360, 480), None, 8.0, 1.0, (360, 480)),
        ((1, 300), 16, 1.0, 0.5, (1, 8)),
    ],
)
def test_scaled_size(
    size: tuple[int, int], short_side: int | None, max_ratio: float, scale: float, expected: tuple[int, int]
) -> None:
    assert scaled_size(*size, AugmentSpec(short_side=short_side, max_ratio=max_ratio), scale) == expected


def test_scales_are_drawn_from_the_whole_range() -> None:
    config = AugmentSpec(**{**PLAIN, "scale_min": 0.5, "scale_max": 2.0})
    mask = np.zeros((40, 40), np.uint8)
    sides = [augment(picture(40, 40), mask, config, 1000, 255, rng(i))[1].shape[0] for i in range(200)]
    assert min(sides) in (20, 21, 22)
    assert max(sides) in (78, 79, 80)
    assert len(set(sides)) > 40


def test_picture_and_mask_stay_together() -> None:
    # The mask is a function of the picture: a quarter plane of each colour.
    mask = np.zeros((64, 64), np.uint8)
    mask[:32, 32:], mask[32:, :32], mask[32:, 32:] = 1, 2, 3
    image = np.repeat((mask * 60)[..., None], 3, axis=2)
    config = AugmentSpec(**{**PLAIN, "scale_min": 0.5, "scale_max": 2.0, "flip": 0.5})
    for seed in range(30):
        out, labels = augment(image, mask, config, 40, 255, rng(seed))
        wrong = np.abs(out[..., 0].astype(int) - labels.astype(int) * 60) > 40
        assert wrong.mean() < 0.1  # only where bilinear edges lie
        assert labels.shape <= (40, 40)


def test_equal_randomness_gives_equal_results_and_other_randomness_others() -> None:
    image, mask = picture(80, 70), rng(1).integers(0, 4, (80, 70), dtype=np.uint8)
    first, again, other = (augment(image, mask, AugmentSpec(), 32, 255, rng(seed)) for seed in (7, 7, 8))
    assert np.array_equal(first[0], again[0])
    assert np.array_equal(first[1], again[1])
    assert not np.array_equal(first[0], other[0])


def test_without_augmentation_a_small_sample_passes_unchanged() -> None:
    image, mask = picture(20, 30), rng(1).integers(0, 4, (20, 30), dtype=np.uint8)
    before = image.copy()
    out, labels = augment(image, mask, AugmentSpec(**PLAIN), 64, 255, rng())
    assert np.array_equal(out, before)
    assert np.array_equal(labels, mask)


def test_flip_mirrors_picture_and_mask() -> None:
    image, mask = picture(20, 30), rng(1).integers(0, 4, (20, 30), dtype=np.uint8)
    out, labels = augment(image, mask, AugmentSpec(**{**PLAIN, "flip": 1.0}), 64, 255, rng())
    assert np.array_equal(out, image[:, ::-1])
    assert np.array_equal(labels, mask[:, ::-1])


def test_class_cap_avoids_crops_of_one_class() -> None:
    mask = np.zeros((40, 400), np.uint8)
    mask[:, 180:220] = 1  # a tenth of the width
    mixed = dict.fromkeys((0.75, 1.0), 0)
    for cap in mixed:
        for seed in range(200):
            top, left = choose_crop(mask, 40, cap, 255, rng(seed))
            share = (mask[top : top + 40, left : left + 40] == 0).mean()
            mixed[cap] += 0.25 < share < 0.75
    assert mixed[1.0] < 40
    assert mixed[0.75] > 100


def test_class_cap_does_not_count_ignored_pixels() -> None:
    mask = np.full((40, 80), 255, np.uint8)
    mask[:, 40:] = 1  # every crop holds at most one class beside what is ignored
    mask[0, 0], mask[1, 0] = 0, 2  # only a crop from the left edge holds two classes, and none over the cap
    mask[:, 1:40] = 255
    lefts = [choose_crop(mask[:2], 40, 0.75, 255, rng(seed))[1] for seed in range(100)]
    assert lefts.count(0) > 10  # 1 of 41 by chance alone


def test_the_eleventh_candidate_is_taken_unchecked() -> None:
    lefts = {choose_crop(np.zeros((10, 100), np.uint8), 10, 0.75, 255, rng(seed))[1] for seed in range(50)}
    assert len(lefts) > 20


def reference_distort(image: np.ndarray, brightness: float, contrast: float) -> np.ndarray:
    def convert(values: np.ndarray, alpha: float, beta: float) -> np.ndarray:
        return np.clip(values.astype(np.float32) * alpha + beta, 0, 255).astype(np.uint8)

    return convert(convert(image, 1, brightness), contrast, 0)


class Script:
    """A generator that answers what a test wants."""

    def __init__(self, *answers: float) -> None:
        self.answers = list(answers)

    def random(self) -> float:
        return self.answers.pop(0)

    def uniform(self, low: float, high: float) -> float:
        value = self.answers.pop(0)
        assert low <= value <= high
        return value

    def integers(self, low: int, high: int) -> int:
        value = int(self.answers.pop(0))
        assert low <= value < high
        return value


def test_brightness_and_contrast_are_those_of_every_pixel() -> None:
    image = picture(16, 16)
    # yes, +20.5; contrast last; yes, x 1.3; no saturation; no hue
    out = distort(image, Script(0.1, 20.5, 0.9, 0.1, 1.3, 0.9, 0.9))  # type: ignore[arg-type]
    assert np.array_equal(out, reference_distort(image, 20.5, 1.3))


def test_saturation_and_hue_turn_the_colour_only() -> None:
    image = np.full((4, 4, 3), (200, 40, 40), np.uint8)
    # no brightness; contrast first, none; saturation x 0.5; hue + 17 (of 180)
    out = distort(image, Script(0.9, 0.1, 0.9, 0.1, 0.5, 0.1, 17))  # type: ignore[arg-type]
    hue, saturation, value = cv2.cvtColor(out, cv2.COLOR_RGB2HSV)[0, 0]
    assert abs(int(hue) - 17) <= 1
    assert abs(int(saturation) - 102) <= 2
    assert value == 200


def test_distortion_has_the_odds_and_bounds_of_the_recipe() -> None:
    grey = np.full((2, 2, 3), 100, np.uint8)
    values = [int(distort(grey, rng(seed))[0, 0, 0]) for seed in range(400)]
    assert 70 < values.count(100) < 130  # neither brightness nor contrast: a quarter
    assert min(values) >= (100 - 32) * 0.5 - 1
    assert max(values) <= (100 + 32) * 1.5


def test_pad_sample() -> None:
    image, mask, extent = pad_sample(picture(3, 5), np.ones((3, 5), np.uint8), 8, 200)
    assert image.shape == (8, 8, 3)
    assert extent == (3, 5)
    assert (mask == 200).sum() == 64 - 15
    assert not image[3:].any()
    assert not image[:, 5:].any()
    assert np.array_equal(image[:3, :5], picture(3, 5))
