from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch

from segfleet.spec.sections import AugmentSpec
from segfleet_pipelines.device_augment import augment_batch
from segfleet_pipelines.photometric import NUM_DRAWS, Jitter, apply_jitter, draw_jitter

SIDE = 64


def photos(count: int, seed: int = 0) -> np.ndarray:
    coarse = np.random.default_rng(seed).integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)
    return np.stack([cv2.resize(part, (SIDE, SIDE), interpolation=cv2.INTER_CUBIC) for part in coarse])


def batch(count: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Pictures, labels, extents and jitter of a batch, half of the pictures noise."""
    rng = np.random.default_rng(seed)
    images = photos(count, seed)
    images[::2] = rng.integers(0, 256, images[::2].shape, dtype=np.uint8)
    masks = rng.integers(0, 200, (count, SIDE, SIDE), dtype=np.uint8)
    extents = rng.integers(1, SIDE + 1, (count, 2))
    extents[0] = SIDE
    jitter = np.stack([draw_jitter(AugmentSpec(), numbers) for numbers in rng.random((count, NUM_DRAWS))])
    return torch.from_numpy(images), torch.from_numpy(masks), torch.from_numpy(extents), torch.from_numpy(jitter)


def test_the_device_makes_of_the_parameters_what_the_cpu_does() -> None:
    images, masks, extents, jitter = batch(64)
    out_images, out_masks = augment_batch(images, masks, extents, jitter)
    assert (out_images.dtype, out_masks.dtype) == (torch.uint8, torch.uint8)
    apart = []
    for i, (height, width) in enumerate(extents.tolist()):
        parameters = Jitter(*jitter[i].tolist())
        image, mask = apply_jitter(images[i, :height, :width].numpy(), masks[i, :height, :width].numpy(), parameters)
        difference = np.abs(out_images[i, :height, :width].numpy().astype(int) - image)
        apart.append(difference.ravel())
        assert np.array_equal(out_masks[i, :height, :width].numpy(), mask)
        if not parameters.hsv:
            assert difference.max() == 0
    levels = np.concatenate(apart)
    # OpenCV itself cuts fractions off in HSV, but rounds in the last pixels of a row that its vectors do not reach.
    assert levels.max() <= 2
    assert (levels <= 1).mean() > 0.99


def test_every_colour_makes_the_trip_to_hsv_as_on_the_cpu() -> None:
    # All colours in steps of 3 or less, two hues on.
    values = np.unique(np.linspace(0, 255, 96).astype(np.uint8))
    colours = np.stack(np.meshgrid(values, values, values), axis=-1).reshape(1, 96, -1, 3)
    parameters: Jitter[float] = Jitter(0.0, 0.0, 1.0, 1.0, 1.0, 2.0, 1.0)
    there, _ = augment_batch(
        torch.from_numpy(colours),
        torch.zeros(colours.shape[:3], dtype=torch.uint8),
        torch.tensor([colours.shape[1:3]]),
        torch.tensor([parameters]),
    )
    here, _ = apply_jitter(colours[0], np.zeros(colours.shape[1:3], np.uint8), parameters)
    apart = np.abs(there[0].numpy().astype(int) - here)
    assert apart.max() <= 1
    assert (apart == 0).mean() > 0.98


def test_a_flip_stays_inside_the_extent() -> None:
    images, masks, extents, jitter = batch(6, seed=1)
    jitter[:] = torch.tensor(Jitter(1.0, 0.0, 1.0, 0.0, 1.0, 0.0, 1.0))
    jitter[5, 0] = 0
    extents[0], extents[1] = torch.tensor([SIDE, 10]), torch.tensor([0, 0])
    out_images, out_masks = augment_batch(images, masks, extents, jitter)
    for i, (_, width) in enumerate(extents.tolist()):
        step = 1 if i == 5 else -1
        for before, after in ((images[i], out_images[i]), (masks[i], out_masks[i])):
            assert np.array_equal(after[:, :width].numpy(), before[:, :width].numpy()[:, ::step])
            assert torch.equal(after[:, width:], before[:, width:])


@pytest.mark.parametrize("count", [1, 4, 5, 9])
def test_samples_do_not_depend_on_their_neighbours(count: int) -> None:
    parts = batch(9, seed=2)
    together = augment_batch(*parts)
    alone = augment_batch(*(part[:count] for part in parts))
    for whole, part in zip(together, alone, strict=True):
        assert torch.equal(whole[:count], part)


def test_what_comes_in_stays_as_it_is() -> None:
    parts = batch(3)
    copies = [part.clone() for part in parts]
    augment_batch(*parts)
    for part, copy in zip(parts, copies, strict=True):
        assert torch.equal(part, copy)
