"""Attention maps as pictures, after figure 1 of Strudel et al. 2021: where chosen patches and classes look."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from segfleet_jobs.charts import DPI, shortened
from segfleet_models.attention_maps import attention_maps
from segfleet_models.segmenter import Segmenter
from segfleet_models.stored_model import StoredModel

NUM_PATCHES, NUM_CLASSES = 2, 3
# A picture is made smaller until its short side has this many pixels: attention is quadratic in them.
_SHORT_SIDE = 512
_VEIL = 0.75


@dataclass(frozen=True)
class View:
    """One map on the sheet.

    Attributes:
        title: What attends, and where in the network.
        weights: (h, w), any scale.
        patch: Row and column of the patch that asks; None: a class asks.
    """

    title: str
    weights: NDArray[np.float32]
    patch: tuple[int, int] | None


def draw_attention(
    stored: StoredModel,
    image: NDArray[np.uint8],
    path: Path,
    *,
    truth: NDArray[np.uint8] | None = None,
    patches: Sequence[tuple[float, float]] = (),
    title: str = "",
) -> None:
    """Write a sheet: the picture with the chosen patches, and a map for each patch, class and block.

    Encoder: the first, the middle and the last block. Decoder: the last block. A map is the mean over the heads,
    stretched over its own range.

    Args:
        stored: A model with a plain ViT encoder.
        image: RGB, (H, W, 3).
        path: PNG to write.
        truth: Labels, (H, W); the largest classes in it ask, without it those of the prediction.
        patches: Places in the picture as shares of its width and height; none: in the middle of the largest classes.
        title: Head line.

    Raises:
        ValueError: the model has no such attention.
    """
    image, truth = _shrunk(image, truth)
    model = stored.model
    if not isinstance(model, Segmenter):
        raise ValueError("the model has no plain ViT encoder, so there is no attention between patches to show")
    layers = _layers(model)
    pixels = model.normalise(torch.from_numpy(np.ascontiguousarray(image))[None])
    if truth is None:
        with torch.no_grad():
            logits = model.upsample(model(pixels), image.shape[:2])
        truth = logits[0].argmax(dim=0).numpy().astype(np.uint8)
    classes = largest_classes(truth, stored.config.num_classes, NUM_CLASSES)
    stride = model.encoder.patch_size
    spots = [(int(y * image.shape[0]) // stride, int(x * image.shape[1]) // stride) for x, y in patches]
    spots = spots or [(y // stride, x // stride) for y, x in (heart(truth == i) for i in classes[:NUM_PATCHES])]
    maps = attention_maps(model, pixels, patches=spots, classes=classes, layers=layers)
    rows = [
        [
            View(f"patch {number}, encoder block {layer + 1}", found[number - 1].numpy(), spot)
            for layer, found in maps.encoder.items()
        ]
        for number, spot in enumerate(spots, start=1)
    ]
    if maps.decoder:
        last = maps.decoder[max(maps.decoder)]
        names = [shortened(stored.class_names[i]) for i in classes]
        rows.append([View(f"class {n}, decoder", m.numpy(), None) for n, m in zip(names, last, strict=True)])
    _draw(image, rows, spots, stride, title, path)


def largest_classes(labels: NDArray[np.uint8], num_classes: int, count: int) -> list[int]:
    """The classes with the most pixels, the largest first; ignored labels do not count."""
    sizes = np.bincount(labels.ravel(), minlength=num_classes)[:num_classes]
    return [int(i) for i in np.argsort(-sizes, kind="stable")[:count] if sizes[i]]


def heart(region: NDArray[np.bool_]) -> tuple[int, int]:
    """Row and column of the pixel of a region that is the farthest from its border."""
    framed = np.pad(region, 1).astype(np.uint8)
    distance = cv2.distanceTransform(framed, cv2.DIST_L2, 3)[1:-1, 1:-1]
    row, column = np.unravel_index(int(distance.argmax()), distance.shape)
    return int(row), int(column)


def _layers(model: Segmenter) -> list[int]:
    depth = model.encoder.depth
    return sorted({0, depth // 2, depth - 1})


def _shrunk(
    image: NDArray[np.uint8], truth: NDArray[np.uint8] | None
) -> tuple[NDArray[np.uint8], NDArray[np.uint8] | None]:
    height, width = image.shape[:2]
    factor = _SHORT_SIDE / min(height, width)
    if factor >= 1:
        return image, truth
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA).astype(np.uint8)
    if truth is not None:
        truth = cv2.resize(truth, size, interpolation=cv2.INTER_NEAREST).astype(np.uint8)
    return small, truth


def _draw(
    image: NDArray[np.uint8],
    rows: Sequence[Sequence[View]],
    spots: Sequence[tuple[int, int]],
    stride: int,
    title: str,
    path: Path,
) -> None:
    height, width = image.shape[:2]
    columns = 1 + max(map(len, rows))
    tile = 3.1
    figure = Figure(
        figsize=(tile * columns, 0.4 + len(rows) * (tile * height / width + 0.3)), dpi=DPI, layout="constrained"
    )
    figure.suptitle(title, parse_math=False)
    grid = figure.subplots(len(rows), columns, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    grid[0][0].imshow(image)
    grid[0][0].set_title("picture", fontsize=10)
    for number, spot in enumerate(spots, start=1):
        _mark(grid[0][0], spot, stride, str(number))
    for line, views in zip(grid, rows, strict=True):
        for axes, view in zip(line[1:], views, strict=False):
            axes.imshow(_veiled(image, view.weights, stride))
            axes.set_title(view.title, fontsize=10, parse_math=False)
            if view.patch is not None:
                _mark(axes, view.patch, stride, "")
    figure.savefig(path, facecolor="white")


def _veiled(image: NDArray[np.uint8], weights: NDArray[np.float32], stride: int) -> NDArray[np.uint8]:
    """The picture in grey under the map: dark where nobody looks, yellow where all do."""
    height, width = image.shape[:2]
    # A few tokens often take most of the attention; beyond the 99th percentile all is equally bright.
    low, high = float(weights.min()), float(np.percentile(weights, 99))
    scaled = np.clip((weights - low) / max(high - low, 1e-12), 0, 1)
    size = (weights.shape[1] * stride, weights.shape[0] * stride)
    large = cv2.resize(scaled.astype(np.float32), size, interpolation=cv2.INTER_NEAREST)[:height, :width]
    colors = cv2.applyColorMap((255 * large).astype(np.uint8), cv2.COLORMAP_CIVIDIS)[..., ::-1]
    grey = np.repeat(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[..., None], 3, axis=2)
    veiled: NDArray[np.uint8] = np.rint(_VEIL * colors + (1 - _VEIL) * grey).astype(np.uint8)
    return veiled


def _mark(axes: Axes, spot: tuple[int, int], stride: int, label: str) -> None:
    row, column = spot
    x, y = column * stride - 0.5, row * stride - 0.5
    for color, width in (("black", 3.0), ("white", 1.4)):
        axes.plot([x, x + stride, x + stride, x, x], [y, y, y + stride, y + stride, y], color=color, linewidth=width)
    if label:
        box = {"boxstyle": "round,pad=0.15", "facecolor": "black", "edgecolor": "none"}
        axes.annotate(label, (x + stride, y), (3, 3), textcoords="offset points", color="white", fontsize=9, bbox=box)
