from __future__ import annotations

from collections import Counter

import cv2
import numpy as np
import pytest

import plain_augment
from segfleet.spec.sections import AugmentSpec
from segfleet_pipelines.photometric import NUM_DRAWS, Jitter, apply_jitter, distort, draw_jitter

COUNT = 6000
NOTHING: Jitter[float] = Jitter(0.0, 0.0, 1.0, 0.0, 1.0, 0.0, 1.0)


def drawn(config: AugmentSpec, count: int = COUNT) -> list[Jitter[float]]:
    draws = np.random.default_rng(0).random((count, NUM_DRAWS))
    return [Jitter(*draw_jitter(config, numbers).tolist()) for numbers in draws]


def jitter_of(draws: plain_augment.PlainDraws) -> Jitter[float]:
    """The reference's parameters as ours."""
    contrast = 1.0 if draws.contrast is None else draws.contrast
    return Jitter(
        flip=float(draws.flip),
        brightness=draws.brightness or 0.0,
        contrast_before=contrast if draws.contrast_first else 1.0,
        hsv=float(draws.saturation is not None or draws.hue is not None),
        saturation=1.0 if draws.saturation is None else draws.saturation,
        hue=float(draws.hue or 0),
        contrast_after=1.0 if draws.contrast_first else contrast,
    )


def branches(jitter: Jitter[float]) -> tuple[bool, ...]:
    """Which steps are drawn; a hue of 0 can only be told apart from none where saturation is not drawn."""
    return (
        jitter.brightness != 0,
        jitter.contrast_before != 1,
        jitter.contrast_after != 1,
        jitter.saturation != 1,
        bool(jitter.hsv) and (jitter.hue != 0 or jitter.saturation == 1),
    )


def photo() -> np.ndarray:
    coarse = np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    return cv2.resize(coarse, (160, 120), interpolation=cv2.INTER_CUBIC)


def test_each_branch_has_the_references_odds() -> None:
    ours = drawn(AugmentSpec())
    generator = np.random.default_rng(1)
    plain = []
    for _ in ours:
        draws = plain_augment.PlainDraws()
        plain_augment.draw_photometric(draws, generator)
        plain.append(jitter_of(draws))
    seen, due = Counter(map(branches, ours)), Counter(map(branches, plain))
    assert seen.keys() == due.keys()
    assert len(seen) == 24  # two for each of brightness, saturation and hue, three for contrast
    for key in seen:
        assert abs(seen[key] - due[key]) < 4 * np.sqrt(seen[key] + due[key])
    odds = {
        "flip": 1 / 2, "brightness": 1 / 2, "contrast_before": 1 / 4, "contrast_after": 1 / 4, "saturation": 1 / 2,
        "hsv": 3 / 4, "hue": 1 / 2 * 35 / 36,
    }  # fmt: skip
    for name, odd in odds.items():
        share = np.mean([getattr(jitter, name) != getattr(NOTHING, name) for jitter in ours])
        assert abs(share - odd) < 4 * np.sqrt(odd * (1 - odd) / COUNT), name


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [
        ("brightness", -32, 32),
        ("contrast_before", 0.5, 1.5),
        ("contrast_after", 0.5, 1.5),
        ("saturation", 0.5, 1.5),
    ],
)
def test_parameters_are_uniform_in_the_references_range(name: str, low: float, high: float) -> None:
    values = np.sort([getattr(jitter, name) for jitter in drawn(AugmentSpec())])
    values = values[values != getattr(NOTHING, name)]
    assert low <= values[0] < values[-1] < high
    steps = np.arange(len(values)) / len(values)
    # Kolmogorov-Smirnov at 1 %.
    assert np.abs((values - low) / (high - low) - steps).max() < 1.63 / np.sqrt(len(values))


def test_hues_are_the_whole_numbers_of_the_references_range() -> None:
    counts = Counter(int(jitter.hue) for jitter in drawn(AugmentSpec()) if jitter.hsv and jitter.saturation == 1)
    assert sorted(counts) == list(range(-18, 18))
    due = sum(counts.values()) / 36
    assert sum((count - due) ** 2 / due for count in counts.values()) < 57.3  # chi-square of 35 degrees, 1 %


def test_flip_has_the_specs_chance_and_colour_can_be_switched_off() -> None:
    for chance in (0.0, 0.3, 1.0):
        jitters = drawn(AugmentSpec(flip=chance, photometric=False), 2000)
        assert abs(np.mean([jitter.flip for jitter in jitters]) - chance) < 0.04
        assert {jitter._replace(flip=0.0) for jitter in jitters} == {NOTHING}


def test_pixels_are_the_references_given_the_same_parameters() -> None:
    """Exact but for samples with saturation and hue, where the reference rounds once more."""
    generator = np.random.default_rng(2)
    apart: dict[bool, list[np.ndarray]] = {True: [], False: []}
    for image in (photo(), generator.integers(0, 256, (90, 90, 3), dtype=np.uint8)):
        for _ in range(60):
            draws = plain_augment.PlainDraws()
            plain_augment.draw_photometric(draws, generator)
            difference = np.abs(
                distort(image, jitter_of(draws)).astype(int) - plain_augment.distort_plainly(image, draws)
            )
            apart[draws.saturation is not None and draws.hue is not None].append(difference.ravel())
    assert np.concatenate(apart[False]).max() == 0
    both = np.concatenate(apart[True])
    assert (both <= 1).mean() > 0.985
    assert both.max() <= 4


def test_saturation_and_hue_turn_the_colour_only() -> None:
    image = np.full((4, 4, 3), (200, 40, 40), np.uint8)
    out = distort(image, NOTHING._replace(hsv=1.0, saturation=0.5, hue=17.0))
    hue, saturation, value = cv2.cvtColor(out, cv2.COLOR_RGB2HSV)[0, 0]
    assert abs(int(hue) - 17) <= 1
    assert abs(int(saturation) - 102) <= 2
    assert value == 200


def test_flip_mirrors_picture_and_mask() -> None:
    image, mask = photo(), np.arange(120 * 160).reshape(120, 160).astype(np.uint8)
    flipped, labels = apply_jitter(image, mask, NOTHING._replace(flip=1.0))
    assert np.array_equal(flipped, image[:, ::-1])
    assert np.array_equal(labels, mask[:, ::-1])


def test_nothing_drawn_leaves_the_very_arrays() -> None:
    image, mask = photo(), np.zeros((120, 160), np.uint8)
    same_image, same_mask = apply_jitter(image, mask, NOTHING)
    assert same_image is image
    assert same_mask is mask
