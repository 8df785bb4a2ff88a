"""Other loaders doing the same work on the same shards: the reference's transforms, torchvision v2, albumentations.

All read the shard with webdataset, decode picture and mask, scale by 0.5 to 2, crop with the class cap, mirror, distort
the colours and pad. The first does each step as the reference code does, float normalisation included; the others give
out bytes, count the classes with bincount, and use their library for everything it has.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import torch
import webdataset as wds
from torchvision.io import ImageReadMode, decode_image
from torchvision.transforms import v2

from photos import IGNORE, Dataset, Pixels

Sample = dict[str, bytes]
Peer = Callable[[Sample], object]

CLASS_CAP = 0.75
TRIES = 10


def read_samples(shards: Path) -> Iterator[Sample]:
    """Members of each training sample, read with webdataset."""
    paths = [str(path) for path in sorted(shards.glob("train-*.tar"))]
    yield from wds.WebDataset(paths, shardshuffle=False, empty_check=False)


def image_bytes(sample: Sample) -> bytes:
    """The encoded picture."""
    return next(content for name, content in sample.items() if name.startswith("image."))


def mask_pixels(sample: Sample) -> Pixels:
    """The labels, in the way that docs/data-format.md shows for other programs."""
    with pa.input_stream(pa.BufferReader(sample["mask.npy.zst"]), compression="zstd") as stream:
        return np.load(io.BytesIO(stream.read()), allow_pickle=False)


def reference(kind: Dataset) -> Peer:
    """The reference's transforms the straightforward way, as mmsegmentation has them."""
    rng = np.random.default_rng(0)

    def build(sample: Sample) -> object:
        image = cv2.imdecode(np.frombuffer(image_bytes(sample), np.uint8), cv2.IMREAD_COLOR)
        factor = rng.uniform(0.5, 2.0) * kind.short_side / min(image.shape[:2])
        size = (int(image.shape[1] * factor + 0.5), int(image.shape[0] * factor + 0.5))
        image = cv2.resize(image, size, interpolation=cv2.INTER_LINEAR)
        mask = cv2.resize(mask_pixels(sample), size, interpolation=cv2.INTER_NEAREST)
        window = _crop(mask, kind.crop, rng, _is_mixed_by_unique)
        image, mask = image[window], mask[window]
        if rng.random() < 0.5:
            image, mask = image[:, ::-1], mask[:, ::-1]
        image = _distort(np.ascontiguousarray(image), rng)
        rgb = (cv2.cvtColor(image, cv2.COLOR_BGR2RGB).astype(np.float32) - 127.5) / 127.5
        padded = np.zeros((kind.crop, kind.crop, 3), np.float32)
        padded[: rgb.shape[0], : rgb.shape[1]] = rgb
        labels = np.full((kind.crop, kind.crop), IGNORE, np.int64)
        labels[: mask.shape[0], : mask.shape[1]] = mask
        return np.ascontiguousarray(padded.transpose(2, 0, 1)), labels

    return build


def torchvision(kind: Dataset) -> Peer:
    """torchvision.transforms.v2 on uint8 tensors."""
    rng = np.random.default_rng(0)
    distort = v2.RandomPhotometricDistort((0.875, 1.125), (0.5, 1.5), (0.5, 1.5), (-0.1, 0.1), p=0.5)
    functional = v2.functional

    def build(sample: Sample) -> object:
        image = decode_image(torch.frombuffer(bytearray(image_bytes(sample)), dtype=torch.uint8), ImageReadMode.RGB)
        mask = torch.from_numpy(mask_pixels(sample))[None]
        factor = rng.uniform(0.5, 2.0) * kind.short_side / min(mask.shape[1:])
        size = [int(side * factor + 0.5) for side in mask.shape[1:]]
        image = functional.resize(image, size, v2.InterpolationMode.BILINEAR, antialias=False)
        mask = functional.resize(mask, size, v2.InterpolationMode.NEAREST)
        window = _crop(mask[0].numpy(), kind.crop, rng, _is_mixed_by_bincount)
        image, mask = image[:, *window], mask[:, *window]
        if rng.random() < 0.5:
            image, mask = functional.horizontal_flip(image), functional.horizontal_flip(mask)
        image = distort(image)
        padding = [0, 0, kind.crop - mask.shape[2], kind.crop - mask.shape[1]]
        return functional.pad(image, padding), functional.pad(mask, padding, fill=IGNORE)

    return build


def albumentations(kind: Dataset) -> Peer | None:
    """albumentations; None if it is not installed."""
    try:
        import albumentations as library
    except ImportError:
        return None
    rng = np.random.default_rng(0)
    scale = library.Compose(
        [library.RandomScale((-0.5, 1.0), cv2.INTER_LINEAR, mask_interpolation=cv2.INTER_NEAREST, p=1.0)]
    )
    no_change = {"brightness": (1, 1), "contrast": (1, 1), "saturation": (1, 1), "hue": (0, 0), "p": 0.5}
    changes = {"brightness": (0.875, 1.125), "contrast": (0.5, 1.5), "saturation": (0.5, 1.5), "hue": (-0.1, 0.1)}
    finish = library.Compose(
        [
            library.HorizontalFlip(p=0.5),
            *(library.ColorJitter(**{**no_change, name: bounds}) for name, bounds in changes.items()),
            library.PadIfNeeded(kind.crop, kind.crop, position="top_left", fill=0, fill_mask=IGNORE),
        ]
    )

    def build(sample: Sample) -> object:
        image = cv2.imdecode(np.frombuffer(image_bytes(sample), np.uint8), cv2.IMREAD_COLOR_RGB)
        scaled = scale(image=image, mask=mask_pixels(sample))
        window = _crop(scaled["mask"], kind.crop, rng, _is_mixed_by_bincount)
        done = finish(
            image=np.ascontiguousarray(scaled["image"][window]), mask=np.ascontiguousarray(scaled["mask"][window])
        )
        return done["image"], done["mask"]

    return build


def _crop(mask: Pixels, crop: int, rng: np.random.Generator, is_mixed: Callable[[Pixels], bool]) -> tuple[slice, slice]:
    for _ in range(TRIES + 1):
        top = int(rng.integers(max(mask.shape[0] - crop, 0) + 1))
        left = int(rng.integers(max(mask.shape[1] - crop, 0) + 1))
        window = slice(top, top + crop), slice(left, left + crop)
        if is_mixed(mask[window]):
            break
    return window


def _is_mixed_by_unique(labels: Pixels) -> bool:
    found, counts = np.unique(labels, return_counts=True)
    counts = counts[found != IGNORE]
    return bool(len(counts) > 1 and counts.max() / counts.sum() < CLASS_CAP)


def _is_mixed_by_bincount(labels: Pixels) -> bool:
    counts = np.bincount(labels.ravel(), minlength=256)
    counts[IGNORE] = 0
    return bool(counts.max() < CLASS_CAP * counts.sum())


def _distort(image: Pixels, rng: np.random.Generator) -> Pixels:
    """Brightness, contrast, saturation and hue of a BGR picture, step by step in float32."""

    def convert(picture: Pixels, alpha: float = 1.0, beta: float = 0.0) -> Pixels:
        return np.clip(picture.astype(np.float32) * alpha + beta, 0, 255).astype(np.uint8)

    if rng.random() < 0.5:
        image = convert(image, beta=rng.uniform(-32, 32))
    is_first, has_contrast = rng.random() < 0.5, rng.random() < 0.5
    contrast = rng.uniform(0.5, 1.5)
    if is_first and has_contrast:
        image = convert(image, alpha=contrast)
    if rng.random() < 0.5:
        hsv = cv2.cvtColor(image, cv2.COLOR_BGR2HSV)
        hsv[:, :, 1] = convert(hsv[:, :, 1], alpha=rng.uniform(0.5, 1.5))
        image = np.asarray(cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR), np.uint8)
    if rng.random() < 0.5:
        hsv = cv2.cvtColor(image, cv2.COLOR_BGR2HSV)
        hsv[:, :, 0] = (hsv[:, :, 0].astype(int) + int(rng.integers(-18, 18))) % 180
        image = np.asarray(cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR), np.uint8)
    if has_contrast and not is_first:
        image = convert(image, alpha=contrast)
    return image
