"""The pictures that the data benchmark works on, brought to the sizes of the real datasets and prepared."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from segfleet.spec.kinds import PrepareSpec
from segfleet.spec.resolve import resolve_spec
from segfleet_pipelines.mask_codec import unpack_mask
from segfleet_pipelines.picture import decode_image
from segfleet_pipelines.reader import SampleIndex
from segfleet_pipelines.writer import prepare

Pixels = NDArray[np.uint8]
Pair = tuple[Pixels, Pixels]

IGNORE = 255


@dataclass(frozen=True, slots=True)
class Dataset:
    """What a real dataset's files are like, and how it is trained on.

    Attributes:
        height, width: Of a picture, pixels.
        suffix: How pictures are stored: jpg (quality 75, 4:2:0) or png.
        blur: Standard deviation of a Gauss filter, pixels; with `noise` it brings the files to the real ones' size.
        noise: Standard deviation of what is added, levels.
        crop: Side of the training crop, pixels.
        short_side, max_ratio: The recipe's scale.
        num_classes: Of the label space.
    """

    height: int
    width: int
    suffix: str
    blur: float
    noise: float
    crop: int
    short_side: int
    max_ratio: float
    num_classes: int


DATASETS = {
    "ade20k": Dataset(512, 683, "jpg", 1.0, 0.0, 512, 512, 4.0, 150),
    "cityscapes": Dataset(1024, 2048, "png", 0.0, 0.8, 768, 1024, 2.0, 19),
}


def make_dataset(folder: Path, kind: Dataset, source: Path | None, samples: int) -> Path:
    """Raw pictures of a kind, from `source` or drawn, as a `folder` dataset; `prepare_raw` makes shards of it."""
    raw = folder / "raw"
    for name in ("images", "masks", "splits"):
        (raw / name).mkdir(parents=True)
    rng = np.random.default_rng(0)
    pairs = _found(source) if source else _drawn(rng)
    for number in range(samples):
        image, mask = (_fit(pixels, kind.height, kind.width) for pixels in next(pairs))
        if kind.blur:
            image = np.asarray(cv2.GaussianBlur(image, (0, 0), kind.blur), np.uint8)
        if kind.noise:
            image = np.clip(image + rng.normal(0, kind.noise, image.shape), 0, 255).astype(np.uint8)
        mask = np.where(mask == IGNORE, mask, mask % kind.num_classes).astype(np.uint8)
        Image.fromarray(image).save(raw / "images" / f"{number:05d}.{kind.suffix}", quality=75)
        Image.fromarray(mask).save(raw / "masks" / f"{number:05d}.png")
    names = ", ".join(f"c{number}" for number in range(kind.num_classes))
    (raw / "classes.yaml").write_text(f"names: [{names}]\nignore_index: {IGNORE}\n")
    stems = [f"{number:05d}" for number in range(samples)]
    (raw / "splits" / "train.txt").write_text("\n".join(stems[:-1]) + "\n")
    (raw / "splits" / "val.txt").write_text(stems[-1] + "\n")
    return raw


def prepare_raw(raw: Path, out: Path, images: str = "keep") -> Path:
    """Shards of a raw `folder` dataset; `images` as in the prepare spec."""
    spec = resolve_spec(
        {"kind": "prepare", "name": "bench", "dataset": "folder", "raw": str(raw), "out": str(out), "images": images}
    )
    assert isinstance(spec, PrepareSpec)
    prepare(spec)
    return out


def _found(source: Path) -> Iterator[Pair]:
    """Pictures and masks of a prepared dataset, or of a folder in which they have equal stems, over and over."""
    pairs = _prepared(source) if (source / "manifest.json").exists() else _loose(source)
    if not pairs:
        raise SystemExit(f"error: no picture with a mask of the same stem in {source}")
    while True:
        yield from pairs


def _prepared(source: Path) -> list[Pair]:
    index = SampleIndex.load(source, "train")
    pairs = []
    for i in range(min(len(index), 128)):
        _, image, mask = index.read_sample(i)
        height, width = (int(side) for side in index.sizes[i])
        pairs.append((decode_image(image), unpack_mask(mask, index.members(i)[1], height, width)))
    return pairs


def _loose(source: Path) -> list[Pair]:
    stems: dict[str, dict[bool, Path]] = defaultdict(dict)
    for path in sorted(source.rglob("*")):
        if path.suffix.lower() in (".jpg", ".jpeg", ".png"):
            with Image.open(path) as image:
                stems[path.stem][image.mode == "RGB"] = path
    found = [files for files in stems.values() if len(files) == 2][:128]
    return [(np.array(Image.open(files[True])), np.array(Image.open(files[False]))) for files in found]


def _drawn(rng: np.random.Generator) -> Iterator[Pair]:
    """Smooth colours under noise, and regions with curved edges: one class covers about a third."""
    while True:
        height, width = 512, 683
        coarse = rng.integers(0, 256, (height // 16, width // 16, 3), dtype=np.uint8)
        image = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
        image = np.clip(image + rng.normal(0, 4, image.shape), 0, 255).astype(np.uint8)
        fields = rng.normal(size=(8, 6, 8)).astype(np.float32)
        fields[0] += 0.7
        sizes = (cv2.resize(field, (width, height), interpolation=cv2.INTER_CUBIC) for field in fields)
        labels = rng.choice(150, 8, replace=False).astype(np.uint8)
        yield image, labels[np.stack(list(sizes)).argmax(axis=0)]


def _fit(pixels: Pixels, height: int, width: int) -> Pixels:
    """The largest part from the middle that has the ratio, scaled to the size; upright pictures are turned."""
    if (pixels.shape[0] > pixels.shape[1]) != (height > width):
        pixels = np.ascontiguousarray(np.rot90(pixels))
    factor = max(height / pixels.shape[0], width / pixels.shape[1])
    rows, columns = min(pixels.shape[0], round(height / factor)), min(pixels.shape[1], round(width / factor))
    top, left = (pixels.shape[0] - rows) // 2, (pixels.shape[1] - columns) // 2
    part = pixels[top : top + rows, left : left + columns]
    interpolation = cv2.INTER_CUBIC if pixels.ndim == 3 else cv2.INTER_NEAREST
    return np.asarray(cv2.resize(part, (width, height), interpolation=interpolation), np.uint8)
