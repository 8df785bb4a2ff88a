"""Picture sheets: rows of views with captions, and a legend of the classes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from segfleet.errors import DataError
from segfleet_pipelines.mask_codec import unpack_mask
from segfleet_pipelines.picture import Palette, Pixels, colorize, decode_image, overlay
from segfleet_pipelines.reader import SampleIndex

Color = tuple[int, int, int]
Row = tuple[str, Sequence[Pixels]]
Entry = tuple[str, Color | None]  # of the legend; None: striped

_TILE_WIDTH, _TILE_HEIGHT = 300, 225  # a picture is scaled to fit, pixels
_GAP, _TEXT, _SWATCH = 12, 18, 14
_PAPER, _INK, _FAINT = (255, 255, 255), (30, 30, 30), (110, 110, 110)
# Ignored pixels are striped: plain black, white or grey may be a class.
_STRIPES: Palette = ((255, 255, 255), (150, 150, 150))
_STRIPE = 3  # width of a stripe, pixels of the sheet


def write_sheet(location: str | Path, out: Path, split: str, count: int = 12) -> None:
    """Write a PNG of `count` samples spread evenly over a split.

    Each row of the sheet shows two samples, each as picture, overlay and mask.

    Raises:
        DataError: no such dataset or split, a damaged sample, or `out` cannot be written.
    """
    index = SampleIndex.load(location, split)
    manifest = index.manifest
    chosen = np.unique(np.linspace(0, len(index) - 1, min(count, len(index))).round().astype(int))
    rows = [_sample_row(index, int(i)) for i in chosen]
    shown = np.flatnonzero(index.class_pixels[chosen].sum(axis=0))
    title = f"{manifest.name}, {split}: {len(chosen)} of {len(index)} samples"
    names: dict[Color, list[str]] = {}
    for i in shown:
        names.setdefault(manifest.palette[i], []).append(manifest.class_names[i])
    entries = [(" / ".join(same), color) for color, same in names.items()]
    sheet = compose_sheet(title, rows, entries, columns=2)
    try:
        sheet.save(out, format="PNG")
    except OSError as error:
        raise DataError(f"{out} cannot be written: {error.strerror or error}; choose another place") from error


def compose_sheet(
    title: str,
    rows: Sequence[Row],
    entries: Sequence[tuple[str, Color]],
    *,
    columns: int = 1,
) -> Image.Image:
    """Lay out views, each scaled to fit a tile.

    Args:
        title: Head line.
        rows: A caption and its views, every row with as many; RGB (H, W, 3).
        entries: The legend: names and colours.
        columns: Rows that stand side by side.
    """
    tiles = [(caption, [_scaled(view) for view in views]) for caption, views in rows]
    legend = [*entries, ("ignored", None)]
    return _assemble(title, tiles, legend, min(columns, len(tiles)))


def _sample_row(index: SampleIndex, i: int) -> Row:
    """Caption, then picture, overlay and mask."""
    key, image_bytes, mask_bytes = index.read_sample(i)
    try:
        height, width = index.sizes[i].tolist()
        image, mask = decode_image(image_bytes), unpack_mask(mask_bytes, index.members(i)[1], height, width)
    except DataError as error:
        raise DataError(f"shard {index.shard_of(i)!r}, key {key!r}: {error}") from error
    palette: Palette = index.manifest.palette
    return f"{key}  {width} x {height}", [image, overlay(image, mask, palette), _mask_view(mask, palette)]


def striped(view: Pixels, ignored: npt.NDArray[np.bool_]) -> Pixels:
    """A view (H, W, 3) with its ignored pixels (H, W) striped, at the same width on every sheet."""
    height, width = ignored.shape
    period = max(1, round(_STRIPE / min(_TILE_WIDTH / width, _TILE_HEIGHT / height, 1)))
    stripes = np.asarray(_STRIPES, np.uint8)[np.add.outer(np.arange(height), np.arange(width)) // period % 2]
    marked: Pixels = np.where(ignored[..., None], stripes, view)
    return marked


def _mask_view(mask: Pixels, palette: Palette) -> Pixels:
    """Colours of a mask, (H, W, 3); labels beyond the palette are striped."""
    return striped(colorize(mask, palette), mask >= len(palette))


def _scaled(picture: Pixels) -> Image.Image:
    height, width = picture.shape[:2]
    factor = min(_TILE_WIDTH / width, _TILE_HEIGHT / height)
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    # Small pictures are shown pixel by pixel, large ones smoothed.
    return Image.fromarray(picture).resize(size, Image.Resampling.BICUBIC if factor < 1 else Image.Resampling.NEAREST)


def _assemble(
    title: str, rows: Sequence[tuple[str, list[Image.Image]]], entries: Sequence[Entry], columns: int
) -> Image.Image:
    font, small = ImageFont.load_default(18), ImageFont.load_default(13)
    views_a_row = len(rows[0][1])
    group = views_a_row * _TILE_WIDTH + (views_a_row - 1) * (_GAP // 3)
    width = columns * group + (columns + 1) * 2 * _GAP
    legend = _legend_places(entries, width, small)
    legend_height = max((y for _, y in legend), default=0) + _TEXT + _GAP
    lines = [rows[start : start + columns] for start in range(0, len(rows), columns)]
    heights = [max(view.height for _, views in line for view in views) + _TEXT + _GAP for line in lines]
    sheet = Image.new("RGB", (width, 3 * _GAP + _TEXT + legend_height + sum(heights)), _PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((2 * _GAP, _GAP), title, _INK, font)
    top = 2 * _GAP + _TEXT
    for (name, color), (x, y) in zip(entries, legend, strict=True):
        if color is None:
            striped = _mask_view(np.zeros((_SWATCH, _SWATCH), np.uint8), ())
            sheet.paste(Image.fromarray(striped), (x, top + y))
        draw.rectangle((x, top + y, x + _SWATCH, top + y + _SWATCH), color, _FAINT)
        draw.text((x + _SWATCH + 5, top + y), name, _INK, small)
    top += legend_height
    for line, height in zip(lines, heights, strict=True):
        for column, (caption, views) in enumerate(line):
            left = 2 * _GAP + column * (group + 2 * _GAP)
            draw.text((left, top), caption, _FAINT, small)
            for view in views:
                sheet.paste(view, (left, top + _TEXT))
                left += view.width + _GAP // 3
        top += height
    return sheet


def _legend_places(
    entries: Sequence[Entry], width: int, font: ImageFont.ImageFont | ImageFont.FreeTypeFont
) -> list[tuple[int, int]]:
    """Upper left corner of each entry, broken into lines."""
    places = []
    x, y = 2 * _GAP, 0
    for name, _ in entries:
        needed = _SWATCH + 5 + round(font.getlength(name)) + 2 * _GAP
        if x + needed > width and x > 2 * _GAP:
            x, y = 2 * _GAP, y + _TEXT + 4
        places.append((x, y))
        x += needed
    return places
