from __future__ import annotations

import io
import os
from collections import Counter
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

import plain_augment
from segfleet.errors import DataError
from segfleet.spec.sections import AugmentSpec
from segfleet_pipelines.augment import CROP_TRIES, Augmented, augment_sample, choose_crop, scaled_size
from segfleet_pipelines.photometric import Jitter, apply_jitter
from segfleet_pipelines.picture import Window

PLAIN = {"scale_min": 1.0, "scale_max": 1.0, "flip": 0.0, "photometric": False}
DATA = Path(os.environ.get("SEGFLEET_TEST_DATA", Path(__file__).resolve().parents[4] / "shared" / "data"))


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    return rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def regions(height: int, width: int, seed: int = 0, classes: int = 5) -> np.ndarray:
    """Labels as photographs have them: large regions with curved edges, one class common, some pixels ignored."""
    noise = rng(seed).normal(size=(classes, 5, 6)).astype(np.float32)
    noise[0] += 0.8
    fields = np.stack([cv2.resize(field, (width, height), interpolation=cv2.INTER_CUBIC) for field in noise])
    mask = fields.argmax(axis=0).astype(np.uint8)
    mask[fields.max(axis=0) < 0.2] = 255
    return mask


def lossless(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG", compress_level=1)
    return buffer.getvalue()


def augmented(image: np.ndarray, mask: np.ndarray, crop: int, seed: int = 0, **config: Any) -> Augmented:
    return augment_sample(lossless(image), mask, AugmentSpec(**config), crop, 255, rng(seed))


def ks_distance(first: list[float], second: list[float]) -> float:
    """Largest difference of two samples' distribution functions, over its bound at 1 % chance (Kolmogorov-Smirnov)."""
    points = np.concatenate((first, second))
    shares = [np.searchsorted(np.sort(sample), points, side="right") / len(sample) for sample in (first, second)]
    bound = 1.63 * np.sqrt(1 / len(first) + 1 / len(second))
    return float(np.abs(shares[0] - shares[1]).max() / bound)


def chi_square(counts: list[int], expected: list[float]) -> float:
    """Chi-square of counts, over its bound at about 1 % chance (Wilson and Hilferty's approximation)."""
    freedom = len(counts) - 1
    bound = freedom * (1 - 2 / (9 * freedom) + 2.33 * np.sqrt(2 / (9 * freedom))) ** 3
    return float(sum((seen - due) ** 2 / due for seen, due in zip(counts, expected, strict=True)) / bound)


# --- Scale


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


def test_scales_are_distributed_as_the_references() -> None:
    mask = np.zeros((24, 40), np.uint8)
    data = lossless(picture(24, 40))
    config = AugmentSpec(short_side=400, max_ratio=4.0, on_device=True)
    ours = [augment_sample(data, mask, config, 4096, 255, rng(seed)).mask.shape for seed in range(600)]
    ratios = rng(1).uniform(0.5, 2.0, 600)
    plain = [plain_augment.scale_size(mask.shape, 400, 4.0, ratio) for ratio in ratios]
    for side in (0, 1):
        assert ks_distance([size[side] for size in ours], [size[side] for size in plain]) < 1
    assert set(ours) <= {plain_augment.scale_size(mask.shape, 400, 4.0, ratio) for ratio in np.arange(0.5, 2, 0.0005)}


# --- Window and class cap


def test_windows_are_spread_evenly_over_all_places() -> None:
    # Scaled 2: 60 x 80 becomes 120 x 160, so that a crop of 100 has 21 x 61 places.
    tops, lefts = Counter[int](), Counter[int]()
    for seed in range(4000):
        window = choose_crop(np.zeros((60, 80), np.uint8), (120, 160), 100, 1.0, 255, rng(seed).random((1, 2))).window
        tops[window.top] += 1
        lefts[window.left] += 1
    # A place of the scaled picture is half a source pixel, rounded up: 0 has one place, 1..10 have two each.
    assert chi_square([tops[i] for i in range(11)], [4000 / 21] + [4000 * 2 / 21] * 10) < 1
    assert chi_square([lefts[i] for i in range(31)], [4000 / 61] + [4000 * 2 / 61] * 30) < 1


class SameDraws:
    """A generator for the plain reference that places its corners where our numbers in [0, 1) do."""

    def __init__(self, corners: np.ndarray) -> None:
        self.numbers = corners.ravel().tolist()

    def integers(self, bound: int) -> int:
        return int(self.numbers.pop(0) * bound)


def compare_crops(mask: np.ndarray, size: tuple[int, int], crop: int, draws: np.ndarray) -> tuple[bool, float]:
    """Whether the plain reference takes the same candidate, and how far apart the windows are, in source pixels."""
    chosen = choose_crop(mask, size, crop, 0.75, 255, draws).window
    scaled = cv2.resize(mask, size[::-1], interpolation=cv2.INTER_NEAREST)
    corner, tries = plain_augment.plain_corner(scaled, crop, 0.75, 255, SameDraws(draws))  # type: ignore[arg-type]
    factors = mask.shape[0] / size[0], mask.shape[1] / size[1]
    exact = corner[0] * factors[0], corner[1] * factors[1]
    # A candidate that is alone is taken unchecked.
    is_same = chosen == choose_crop(mask, size, crop, 0.75, 255, draws[tries - 1 : tries]).window
    return is_same, max(abs(chosen.top - exact[0]), abs(chosen.left - exact[1])) if is_same else 0.0


def assert_crops_agree(masks: list[np.ndarray], seeds: int, crop: int, short_side: int) -> None:
    config = AugmentSpec(short_side=short_side, max_ratio=4.0)
    same, apart = [], []
    for number, mask in enumerate(masks):
        for seed in range(seeds):
            generator = rng(1000 * number + seed)
            size = scaled_size(*mask.shape, config, generator.uniform(0.5, 2.0))
            results = compare_crops(mask, size, crop, generator.random((CROP_TRIES + 1, 2)))
            same.append(results[0])
            apart.append(results[1])
    assert np.mean(same) >= 0.985
    assert max(apart) <= 0.5 + 1e-9


def test_with_the_same_draws_the_reference_takes_the_same_crops() -> None:
    assert_crops_agree([regions(384, 512, seed) for seed in range(25)], seeds=6, crop=512, short_side=512)


def test_with_the_same_draws_the_reference_takes_the_same_crops_of_real_labels() -> None:
    paths = sorted(DATA.glob("pascal_context/**/SegmentationClassContext/*.png"))[:20]
    if not paths:
        pytest.skip(f"no real slices in {DATA}; set SEGFLEET_TEST_DATA")
    assert_crops_agree([np.array(Image.open(path)) for path in paths], seeds=4, crop=480, short_side=520)


def test_tries_and_accepted_windows_are_distributed_as_the_references() -> None:
    # Labels of two halves, nine tenths and one: most candidates break the cap, some masks have none that keeps it.
    mask = np.zeros((120, 400), np.uint8)
    mask[:, 330:] = 1
    size, crop, count = (120, 400), 120, 600
    ours, plain = [], []
    for seed in range(count):
        draws = rng(seed).random((CROP_TRIES + 1, 2))
        window = choose_crop(mask, size, crop, 0.75, 255, draws).window
        # Which candidate it was: the first that begins where the window does.
        ours.append(((draws[:, 1] * 281).astype(int).tolist().index(window.left) + 1, window))
        plain.append(plain_augment.plain_corner(mask, crop, 0.75, 255, rng(10_000 + seed)))
    assert ks_distance([tries for tries, _ in ours], [tries for _, tries in plain]) < 1
    assert ks_distance([window.left for _, window in ours], [corner[1] for corner, _ in plain]) < 1
    # The exact odds: a corner from 241 to 280 holds a quarter to three quarters of each class.
    odds = np.mean([plain_augment.keeps_cap(mask[:, left : left + crop], 0.75, 255) for left in range(281)])
    due = [count * odds * (1 - odds) ** n for n in range(CROP_TRIES)] + [count * (1 - odds) ** CROP_TRIES]
    seen = Counter(tries for tries, _ in ours)
    assert 0.1 < odds < 0.3
    assert chi_square([seen[n] for n in range(1, CROP_TRIES + 2)], due) < 1


def test_class_cap_does_not_count_ignored_pixels() -> None:
    mask = np.full((2, 80), 255, np.uint8)
    mask[:, 40:] = 1  # every crop holds at most one class beside what is ignored
    mask[0, 0], mask[1, 0] = 0, 2  # only a crop from the left edge holds two classes, and none over the cap
    draws = [rng(seed).random((CROP_TRIES + 1, 2)) for seed in range(100)]
    lefts = [choose_crop(mask, (2, 80), 40, 0.75, 255, corners).window.left for corners in draws]
    assert lefts.count(0) > 10  # 1 of 41 by chance alone


@pytest.mark.parametrize("mask", [np.zeros((10, 100), np.uint8), np.full((10, 100), 255, np.uint8)])
def test_the_eleventh_candidate_is_taken_unchecked(mask: np.ndarray) -> None:
    draws = rng().random((CROP_TRIES + 1, 2))
    assert choose_crop(mask, (10, 100), 10, 0.75, 255, draws).window.left == int(draws[-1, 1] * 91)


def test_a_picture_within_the_crop_stays_whole() -> None:
    crop = choose_crop(np.zeros((30, 40), np.uint8), (60, 80), 80, 0.75, 255, rng().random((11, 2)))
    assert (crop.window, crop.height, crop.width) == (Window(0, 0, 30, 40), 60, 80)


@pytest.mark.parametrize(("shape", "size", "crop"), [((1, 1), (500, 500), 16), ((2, 900), (1, 450), 16)])
def test_windows_of_extreme_pictures_are_never_empty_and_never_outside(
    shape: tuple[int, int], size: tuple[int, int], crop: int
) -> None:
    for seed in range(50):
        window = choose_crop(np.zeros(shape, np.uint8), size, crop, 1.0, 255, rng(seed).random((1, 2))).window
        assert 0 <= window.top < window.bottom <= shape[0]
        assert 0 <= window.left < window.right <= shape[1]


# --- Resizing the window


def resized_both_ways(
    image: np.ndarray, mask: np.ndarray, ratio: float, crop: int, seed: int
) -> tuple[Augmented, np.ndarray, np.ndarray]:
    """Ours, and the picture and labels of the reference's resize-then-crop at the same place."""
    config = {**PLAIN, "scale_min": ratio, "scale_max": ratio, "class_cap": 1.0}
    ours = augmented(image, mask, crop, seed, **config)
    size = scaled_size(*mask.shape, AugmentSpec(**config), ratio)
    down, along = rng(seed).random(1 + 2 * (CROP_TRIES + 1))[-2:]
    corner = int(down * (max(size[0] - crop, 0) + 1)), int(along * (max(size[1] - crop, 0) + 1))
    whole = plain_augment.scale(image, mask, size)
    return ours, *(plain_augment.cut(pixels, corner, crop) for pixels in whole)


@pytest.mark.parametrize("ratio", [0.5, 0.61, 0.87, 1.0, 1.13, 1.5, 1.99])
def test_a_resized_window_lies_within_a_source_pixel_of_resize_then_crop(ratio: float) -> None:
    # Red and green are two levels a pixel, down and along: half their difference is a distance in source pixels.
    rows, columns = np.mgrid[:120, :126]
    image = np.stack((2 * rows, 2 * columns, 0 * rows), axis=2).astype(np.uint8)
    for seed in range(20):
        ours, plain_image, _ = resized_both_ways(image, columns.astype(np.uint8), ratio, 50, seed)
        apart = np.abs(ours.image.astype(int) - plain_image) / 2
        assert ours.image.shape == plain_image.shape == (50, 50, 3)
        assert apart.max() <= 1
        assert apart.mean() < 0.5
        if ratio == 1.0:
            assert apart.max() == 0


@pytest.mark.parametrize("ratio", [0.5, 0.61, 0.87, 1.0, 1.13, 1.5, 1.99])
def test_labels_lie_within_a_source_pixel_of_resize_then_crop(ratio: float) -> None:
    rows, columns = np.mgrid[:120, :126].astype(np.uint8)
    for labels in (rows, columns):  # each pixel's label is its own place
        for seed in range(10):
            ours, _, plain = resized_both_ways(picture(120, 126), np.ascontiguousarray(labels), ratio, 50, seed)
            assert np.abs(ours.mask.astype(int) - plain.astype(int)).max() <= 1


@pytest.mark.parametrize("ratio", [0.5, 0.77, 1.0, 1.6, 2.0])
def test_a_whole_picture_is_resized_exactly_as_the_references(ratio: float) -> None:
    image, mask = picture(60, 50), regions(60, 50)
    ours, plain_image, plain_mask = resized_both_ways(image, mask, ratio, 200, 0)
    assert np.array_equal(ours.image, plain_image)
    assert np.array_equal(ours.mask, plain_mask)


def test_picture_and_mask_stay_together() -> None:
    # The mask is a function of the picture: a quarter plane of each colour.
    mask = np.zeros((64, 64), np.uint8)
    mask[:32, 32:], mask[32:, :32], mask[32:, 32:] = 1, 2, 3
    image = np.repeat((mask * 60)[..., None], 3, axis=2)
    for seed in range(30):
        out = augmented(image, mask, 40, seed, photometric=False)
        wrong = np.abs(out.image[..., 0].astype(int) - out.mask.astype(int) * 60) > 40
        assert wrong.mean() < 0.1  # only where bilinear edges lie
        assert max(out.mask.shape) <= 40


# --- The whole


def test_equal_randomness_gives_equal_results_and_other_randomness_others() -> None:
    image, mask = picture(80, 70), regions(80, 70)
    first, again, other = (augmented(image, mask, 32, seed) for seed in (7, 7, 8))
    assert np.array_equal(first.image, again.image)
    assert np.array_equal(first.mask, again.mask)
    assert not np.array_equal(first.image, other.image)


def test_without_augmentation_a_small_sample_passes_unchanged() -> None:
    image, mask = picture(20, 30), regions(20, 30)
    out = augmented(image, mask, 64, **PLAIN)
    assert np.array_equal(out.image, image)
    assert np.array_equal(out.mask, mask)
    assert out.jitter is None


def test_the_mask_that_is_handed_in_is_only_read() -> None:
    image, mask = picture(40, 40), regions(40, 40)
    mask.setflags(write=False)
    for seed in range(10):
        augmented(image, mask, 24, seed)


def test_flip_and_colour_on_the_device_leave_all_else_as_it_is() -> None:
    image, mask = picture(60, 70), regions(60, 70)
    flips = set()
    for seed in range(20):
        here, there = (augmented(image, mask, 48, seed, on_device=on_device) for on_device in (False, True))
        assert there.jitter is not None
        jitter = Jitter(*there.jitter.tolist())
        flips.add(jitter.flip)
        expected = apply_jitter(there.image, there.mask, jitter)
        assert np.array_equal(here.image, expected[0])
        assert np.array_equal(here.mask, expected[1])
    assert flips == {0.0, 1.0}


def test_a_picture_of_another_size_than_its_mask_is_refused() -> None:
    with pytest.raises(DataError, match="has 30x20 pixels, not 31x20"):
        augmented(picture(20, 30), np.zeros((20, 31), np.uint8), 16)


def test_samples_are_distributed_as_the_references() -> None:
    """Colours, sizes and labels of whole samples, all steps together, against the plain reference."""
    image = cv2.GaussianBlur(picture(48, 64), (0, 0), 4)
    image = cv2.normalize(image, None, 0, 255, cv2.NORM_MINMAX)
    mask = regions(48, 64, seed=3)
    data, config = lossless(image), AugmentSpec(short_side=96, max_ratio=4.0)
    ours = [augment_sample(data, mask, config, 80, 255, rng(seed)) for seed in range(700)]
    plain = [
        plain_augment.plain_augment(image, mask, rng(5000 + seed), short_side=96, max_ratio=4.0, crop=80)
        for seed in range(700)
    ]
    for measure in (
        lambda sample: sample.image.mean(),
        lambda sample: sample.image[..., 0].std(),
        lambda sample: sample.image[..., 2].mean() - sample.image[..., 0].mean(),
        lambda sample: sample.image[:, :8].mean() - sample.image[:, -8:].mean(),
        lambda sample: (sample.mask == 0).mean(),
        lambda sample: sample.mask.shape[0],
    ):
        assert ks_distance([measure(sample) for sample in ours], [measure(sample) for sample in plain]) < 1
