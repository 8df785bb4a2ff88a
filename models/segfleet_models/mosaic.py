"""The windows' patch logits put together to scores of pixels, a tile of the picture at a time.

Upsampling windows, averaging them and resizing the result are linear, and each acts on rows and columns apart. So all
of them together are one matrix for the rows and one for the columns, and the map of all classes at full size, 200 MiB
for one picture of ADE20K, is never needed: only the small logits and one tile that fits into the processor's cache.

Shapes: H W pixels of the picture, K classes; S sources, the patches of all windows along one side.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from segfleet_models.resampling import bilinear_matrix

# Scores held at once. Small on a processor, to stay in its cache; a GPU wants few large steps.
_TILE_BYTES = {"cpu": 2**20}
_TILE_BYTES_ELSEWHERE = 2**27
# A strip of columns, upsampled across only, is this many times a tile.
_TILES_PER_STRIP = 4
# Narrower strips would spend their time in small calls; only pictures far above 8,000 pixels get that far.
_MIN_STRIP_COLUMNS = 32

Tile = tuple[slice, slice, Tensor]


@dataclass(frozen=True)
class Side:
    """How one side's pixels are made of the patches of all windows.

    Attributes:
        weights: (pixels, S) float32. Sources are ordered by place, so that those of neighbouring pixels lie together.
        places: Source of each window's patches, (windows, patches) int64.
        spans: First source with a weight, and the one past the last, per pixel; (2, pixels) int64.
    """

    weights: Tensor
    places: Tensor
    spans: Tensor

    @property
    def num_sources(self) -> int:
        """S."""
        return self.weights.shape[1]

    def flipped(self) -> Side:
        """The pixels in opposite order."""
        return Side(self.weights.flip(0), self.places, self.spans.flip(1))

    def of_rows(self, pixels: slice) -> tuple[range, Side]:
        """The windows that these pixels need, and the side that they alone make of these pixels."""
        weights = self.weights[pixels]
        needed = (weights != 0).any(dim=0)[self.places].any(dim=1).nonzero()
        windows = range(int(needed.min()), int(needed.max()) + 1)
        if len(windows) == len(self.places) and len(weights) == len(self.weights):
            return windows, self
        places = self.places[windows.start : windows.stop]
        sources = places.flatten().sort().values
        weights = weights[:, sources].contiguous()
        return windows, Side(weights, torch.searchsorted(sources, places), _spans(weights))

    def part(self, pixels: slice) -> tuple[slice, Tensor]:
        """The sources that these pixels need, and their weights."""
        sources = slice(int(self.spans[0, pixels].min()), int(self.spans[1, pixels].max()))
        return sources, self.weights[pixels, sources]


def build_side(starts: Sequence[int], window: int, patches: int, upsampled: int, num_pixels: int) -> Side:
    """Lay windows along one side of a picture.

    Args:
        starts: First pixel of each window; the last window ends with the side.
        window: Pixels of a window.
        patches: Patches of a window.
        upsampled: Pixels that the patches are upsampled to; what lies beyond the window is cut off.
        num_pixels: Length that the side is resized to, after the mean over the windows.
    """
    upsampling = bilinear_matrix(patches, upsampled)[:window]
    weights = torch.zeros(starts[-1] + window, len(starts), patches)
    cover = torch.zeros(len(weights), 1)
    for number, start in enumerate(starts):
        weights[start : start + window, number] = upsampling
        cover[start : start + window] += 1
    centres = torch.tensor(starts)[:, None] + (torch.arange(patches) + 0.5) * (upsampled / patches)
    order = centres.flatten().argsort(stable=True)
    weights = weights.flatten(1).div_(cover)[:, order]
    if num_pixels != len(weights):
        weights = F.interpolate(weights.T[None], size=num_pixels, mode="linear", align_corners=False)[0].T
    return Side(weights.contiguous(), order.argsort().view(len(starts), patches), _spans(weights))


def _spans(weights: Tensor) -> Tensor:
    used = (weights != 0).to(torch.uint8)
    return torch.stack([used.argmax(dim=1), used.shape[1] - used.flip(1).argmax(dim=1)])


class Mosaic:
    """The logits of one pass over a picture, or over some of its rows, as its windows' patches.

    Args:
        down: Rows of the picture.
        across: Its columns.
        num_classes: K.
        device: Of the logits.
    """

    def __init__(self, down: Side, across: Side, num_classes: int, device: torch.device) -> None:
        self.down, self.across = down, across
        self.logits = torch.zeros(down.num_sources, across.num_sources, num_classes, device=device)

    def put(self, place: tuple[int, int], patch_logits: Tensor) -> None:
        """Take in the window at this row and column of windows: (K, h, w)."""
        rows, columns = self.down.places[place[0]][:, None], self.across.places[place[1]]
        self.logits[rows, columns] = patch_logits.permute(1, 2, 0).float()

    def take_over(self, other: Mosaic, row: int, other_row: int) -> None:
        """Copy a row of windows from a mosaic of other rows of the same pass."""
        self.logits[self.down.places[row]] = other.logits[other.down.places[other_row]]

    def strip(self, columns: slice) -> Tensor:
        """Logits upsampled across: (S, columns, K)."""
        sources, weights = self.across.part(columns)
        # In float32 also under autocast, whose rounding would decide between neighbouring classes.
        with torch.autocast(self.logits.device.type, enabled=False):
            return weights.to(self.logits.device) @ self.logits[:, sources]

    def band(self, strip: Tensor, rows: slice) -> Tensor:
        """Logits of a strip's pixels: (rows, columns, K)."""
        sources, weights = self.down.part(rows)
        with torch.autocast(strip.device.type, enabled=False):
            return (weights.to(strip.device) @ strip[sources].flatten(1)).view(-1, *strip.shape[1:])


def score_tiles(passes: Sequence[Mosaic]) -> Iterator[Tile]:
    """Scores of every pixel, tile by tile; the best class is the one of the highest score.

    Args:
        passes: Over one picture, or over the same rows of one.

    Yields:
        Rows, columns, and the scores (rows, columns, K) of a tile: logits of a single pass, and of several the sum of
        their probabilities.
    """
    logits = passes[0].logits
    height, width, num_classes = len(passes[0].down.weights), len(passes[0].across.weights), logits.shape[-1]
    tile_values = _TILE_BYTES.get(logits.device.type, _TILE_BYTES_ELSEWHERE) // logits.element_size()
    column_values = num_classes * sum(one.down.num_sources for one in passes)
    num_columns = min(width, max(_MIN_STRIP_COLUMNS, tile_values * _TILES_PER_STRIP // column_values))
    num_rows = max(1, tile_values // (num_columns * num_classes))
    for columns in _slices(width, num_columns):
        strips = [one.strip(columns) for one in passes]
        for rows in _slices(height, num_rows):
            bands = (one.band(strip, rows) for one, strip in zip(passes, strips, strict=True))
            if len(passes) > 1:
                bands = (band.softmax(dim=-1) for band in bands)
            total = next(bands)
            for band in bands:
                total += band
            yield rows, columns, total


def _slices(length: int, step: int) -> list[slice]:
    return [slice(first, min(first + step, length)) for first in range(0, length, step)]
