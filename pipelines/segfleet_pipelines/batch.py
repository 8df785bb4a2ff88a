"""One step's samples become one batch: read, decoded, checked, augmented, padded, stacked."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

import cv2
import numpy as np
import torch
from torch import Tensor

from segfleet.errors import DataError
from segfleet.spec.sections import AugmentSpec
from segfleet_pipelines.augment import Augmented, augment_sample
from segfleet_pipelines.mask_codec import unpack_mask
from segfleet_pipelines.photometric import Jitter
from segfleet_pipelines.picture import Pixels, decode_image
from segfleet_pipelines.plan import SampleRef
from segfleet_pipelines.reader import SampleIndex
from segfleet_pipelines.shuffle import sample_rng

# For each dataset of a training the samples that it leaves out, by index.
Skips = tuple[frozenset[int], ...]


@dataclass(frozen=True, slots=True)
class Batch:
    """One rank's part of one global batch, in slot order.

    A slot may be empty: at the end of an epoch's short batch, or because its sample is left out as damaged. Its picture
    is 0, its mask ignored everywhere, its extent 0 x 0, its key empty.

    Attributes:
        images: RGB, uint8 (B, crop, crop, 3); 0 beyond the extents.
        masks: Labels, uint8 (B, crop, crop); the ignore index beyond the extents.
        extents: Height and width of each sample before padding, int64 (B, 2).
        jitter: What is left to the device, fields of a `photometric.Jitter`, float32 (B, 7); None if nothing is.
        keys: Of the samples.
        skipped: Keys of this rank's samples that are left out.
        num_skipped: How many samples are left out of the global batch.
        step: The global step that the batch belongs to.
    """

    images: Tensor
    masks: Tensor
    extents: Tensor
    jitter: Tensor | None
    keys: tuple[str, ...]
    skipped: tuple[str, ...]
    num_skipped: int
    step: int

    def pin_memory(self) -> Self:
        """A copy in page-locked memory; torch's loader asks for it by this name."""
        return replace(
            self,
            images=self.images.pin_memory(),
            masks=self.masks.pin_memory(),
            extents=self.extents.pin_memory(),
            jitter=None if self.jitter is None else self.jitter.pin_memory(),
        )


@dataclass(frozen=True, slots=True)
class EvalSample:
    """One sample as it was prepared.

    Attributes:
        index: Its place in the split.
        key: Its key.
        image: RGB, uint8 (H, W, 3).
        mask: Labels, uint8 (H, W).
    """

    index: int
    key: str
    image: Pixels
    mask: Pixels


@dataclass(frozen=True, slots=True)
class Part:
    """One rank's part of one global batch before it is read."""

    step: int
    slots: range
    refs: list[SampleRef]
    num_skipped: int


@dataclass(frozen=True, slots=True)
class Failure:
    """An error on its way out of a loader process: torch would bury the message in a traceback."""

    message: str


@dataclass(frozen=True, slots=True)
class BatchBuilder:
    """Stage: a step's samples, read, decoded, augmented, padded and stacked."""

    indexes: tuple[SampleIndex, ...]
    skips: Skips
    augment: AugmentSpec
    crop: int
    seed: int

    def __call__(self, part: Part) -> Batch | Failure:
        """The part as a batch."""
        try:
            return self._build(part)
        except DataError as error:
            return Failure(str(error))

    def _build(self, part: Part) -> Batch:
        share = len(part.slots)
        images = np.zeros((share, self.crop, self.crop, 3), np.uint8)
        masks = np.full((share, self.crop, self.crop), self.indexes[0].manifest.ignore_index, np.uint8)
        extents = np.zeros((share, 2), np.int64)
        jitter = np.zeros((share, len(Jitter._fields)), np.float32) if self.augment.on_device else None
        keys, skipped = [""] * share, []
        for ref in part.refs:
            key, place = self.indexes[ref.dataset].keys[ref.index], ref.slot - part.slots.start
            if ref.index in self.skips[ref.dataset]:
                skipped.append(key)
                continue
            sample = self._augmented(ref)
            height, width = sample.mask.shape
            images[place, :height, :width], masks[place, :height, :width] = sample.image, sample.mask
            extents[place], keys[place] = (height, width), key
            if jitter is not None:
                jitter[place] = sample.jitter
        return Batch(
            torch.from_numpy(images),
            torch.from_numpy(masks),
            torch.from_numpy(extents),
            None if jitter is None else torch.from_numpy(jitter),
            tuple(keys),
            tuple(skipped),
            part.num_skipped,
            part.step,
        )

    def _augmented(self, ref: SampleRef) -> Augmented:
        index = self.indexes[ref.dataset]
        key, image, mask = _read(index, ref.index)
        rng = sample_rng(self.seed, ref.epoch, ref.index, ref.dataset)
        try:
            return augment_sample(image, mask, self.augment, self.crop, index.manifest.ignore_index, rng)
        except DataError as error:
            raise _damaged(index, ref.index, key, error) from error


@dataclass(frozen=True, slots=True)
class EvalBuilder:
    """Stage: a sample, read and decoded."""

    index: SampleIndex

    def __call__(self, i: int) -> EvalSample | Failure:
        """Sample `i` of the split."""
        try:
            key, data, mask = _read(self.index, i)
            try:
                image = decode_image(data)
                if image.shape[:2] != mask.shape:
                    raise DataError(f"picture {image.shape[:2]} and mask {mask.shape} differ in size")
            except DataError as error:
                raise _damaged(self.index, i, key, error) from error
            # torch takes no arrays that cannot be written to, as decoded masks are.
            return EvalSample(i, key, image, mask.copy())
        except DataError as error:
            return Failure(str(error))


def _read(index: SampleIndex, i: int) -> tuple[str, bytes, Pixels]:
    """Key, encoded picture and labels of sample `i`; damage names shard and key."""
    key, image, mask_bytes = index.read_sample(i)
    height, width = (int(side) for side in index.sizes[i])
    try:
        mask = unpack_mask(mask_bytes, index.members(i)[1], height, width)
        # A label beyond the classes would kill a GPU's context for good: it must not leave this process.
        if cv2.countNonZero(cv2.LUT(mask, _foreign_labels(index))):
            raise DataError(f"labels beyond the {index.manifest.num_classes} classes")
    except DataError as error:
        raise _damaged(index, i, key, error) from error
    return key, image, mask


def _damaged(index: SampleIndex, i: int, key: str, error: DataError) -> DataError:
    return DataError(f"shard {index.shard_of(i)!r}, key {key!r}: {error}; prepare the dataset again")


def _foreign_labels(index: SampleIndex) -> Pixels:
    table = np.ones(256, np.uint8)
    table[: index.manifest.num_classes] = 0
    table[index.manifest.ignore_index] = 0
    return table
