"""Training samples per second and core: ours beside a plain loader with the reference code's transforms.

Both read the same shard of seeded ADE-like pictures (JPEG, about 683 x 512) with masks (PNG), apply scale 0.5-2, crop
512 with class cap 0.75, flip and photometric distortion, on one thread; medians of interleaved rounds of CPU time.
Run: python benchmarks/bench_data.py [--samples N] [--rounds N]
"""

from __future__ import annotations

import argparse
import io
import statistics
import tarfile
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from segfleet.spec.kinds import PrepareSpec
from segfleet.spec.resolve import resolve_spec
from segfleet.spec.sections import AugmentSpec
from segfleet_pipelines.loader import train_loader
from segfleet_pipelines.reader import SampleIndex
from segfleet_pipelines.writer import prepare

CROP = 512
Pixels = NDArray[np.uint8]


def make_shards(folder: Path, samples: int) -> Path:
    """A prepared dataset of smooth random pictures with 150 classes in large regions."""
    rng = np.random.default_rng(0)
    raw = folder / "raw"
    for name in ("images", "masks", "splits"):
        (raw / name).mkdir(parents=True)
    for number in range(samples):
        height, width = int(rng.integers(480, 560)), int(rng.integers(620, 740))
        coarse = rng.integers(0, 256, (height // 16, width // 16, 3), dtype=np.uint8)
        image = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
        image = np.clip(image + rng.normal(0, 6, image.shape), 0, 255).astype(np.uint8)
        regions = rng.integers(0, 150, (6, 8), dtype=np.uint8)
        mask = cv2.resize(regions, (width, height), interpolation=cv2.INTER_NEAREST)
        Image.fromarray(image).save(raw / "images" / f"{number:05d}.jpg", quality=75)
        Image.fromarray(mask).save(raw / "masks" / f"{number:05d}.png")
    names = ", ".join(f"c{number}" for number in range(150))
    (raw / "classes.yaml").write_text(f"names: [{names}]\nignore_index: 255\n")
    stems = [f"{number:05d}" for number in range(samples)]
    (raw / "splits" / "train.txt").write_text("\n".join(stems[:-1]) + "\n")
    (raw / "splits" / "val.txt").write_text(stems[-1] + "\n")
    document = {"kind": "prepare", "name": "bench", "dataset": "folder", "raw": str(raw), "out": str(folder / "out")}
    spec = resolve_spec(document)
    assert isinstance(spec, PrepareSpec)
    prepare(spec)
    return folder / "out"


def plain_sample(image_bytes: bytes, mask_bytes: bytes, rng: np.random.Generator) -> Pixels:
    """One sample by the reference transforms the straightforward way: whole picture, np.unique, HSV and back."""
    image = cv2.imdecode(np.frombuffer(image_bytes, np.uint8), cv2.IMREAD_COLOR)
    mask = np.asarray(Image.open(io.BytesIO(mask_bytes)))
    factor = rng.uniform(0.5, 2.0) * CROP / min(mask.shape)
    size = (int(mask.shape[1] * factor + 0.5), int(mask.shape[0] * factor + 0.5))
    image = cv2.resize(image, size, interpolation=cv2.INTER_LINEAR)
    mask = cv2.resize(mask, size, interpolation=cv2.INTER_NEAREST)
    for _ in range(11):
        top = int(rng.integers(max(mask.shape[0] - CROP, 0) + 1))
        left = int(rng.integers(max(mask.shape[1] - CROP, 0) + 1))
        window = mask[top : top + CROP, left : left + CROP]
        labels, counts = np.unique(window, return_counts=True)
        counts = counts[labels != 255]
        if len(counts) > 1 and counts.max() / counts.sum() < 0.75:
            break
    image, mask = image[top : top + CROP, left : left + CROP], window
    if rng.random() < 0.5:
        image, mask = image[:, ::-1], mask[:, ::-1]
    image = _plain_photometric(np.ascontiguousarray(image), rng)
    rgb = cv2.cvtColor(image, cv2.COLOR_BGR2RGB).astype(np.float32)
    rgb = (rgb - 127.5) / 127.5
    padded = np.zeros((CROP, CROP, 3), np.float32)
    padded[: rgb.shape[0], : rgb.shape[1]] = rgb
    return np.ascontiguousarray(padded.transpose(2, 0, 1)).view(np.uint8)


def _plain_photometric(image: Pixels, rng: np.random.Generator) -> Pixels:
    def convert(picture: Pixels, alpha: float = 1.0, beta: float = 0.0) -> Pixels:
        return np.clip(picture.astype(np.float32) * alpha + beta, 0, 255).astype(np.uint8)

    if rng.random() < 0.5:
        image = convert(image, beta=rng.uniform(-32, 32))
    if rng.random() < 0.5:
        image = convert(image, alpha=rng.uniform(0.5, 1.5))
    if rng.random() < 0.5:
        hsv = cv2.cvtColor(image, cv2.COLOR_BGR2HSV)
        hsv[:, :, 1] = convert(hsv[:, :, 1], alpha=rng.uniform(0.5, 1.5))
        image = np.asarray(cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR), np.uint8)
    if rng.random() < 0.5:
        hsv = cv2.cvtColor(image, cv2.COLOR_BGR2HSV)
        hsv[:, :, 0] = (hsv[:, :, 0].astype(int) + int(rng.integers(-18, 18))) % 180
        image = np.asarray(cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR), np.uint8)
    return image


def plain_round(shards: Path) -> int:
    """Every training sample once through the plain loader; how many."""
    rng = np.random.default_rng(0)
    parts: dict[str, dict[str, bytes]] = {}
    count = 0
    for path in sorted(shards.glob("train-*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                key, _, kind = member.name.partition(".")
                content = tar.extractfile(member)
                assert content is not None
                parts.setdefault(key, {})["mask" if "mask" in kind else "image"] = content.read()
                if len(parts[key]) == 2:
                    sample = parts.pop(key)
                    plain_sample(sample["image"], sample["mask"], rng)
                    count += 1
    return count


def our_round(shards: Path) -> int:
    """Every training sample once through our loader, in batches of 8; how many."""
    count = len(SampleIndex.load(shards, "train")) // 8 * 8
    augment = AugmentSpec(short_side=CROP, max_ratio=4.0)
    batches = train_loader(
        shards, "train", augment=augment, crop=CROP, seed=0, global_batch=8, rank=0, world_size=1, start_step=0,
        num_steps=count // 8, processes=0,
    )  # fmt: skip
    return sum(len(batch.keys) for batch in batches)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=129)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    rates: dict[str, list[float]] = {"plain": [], "ours": []}
    with tempfile.TemporaryDirectory() as folder:
        shards = make_shards(Path(folder), options.samples)
        for number in range(options.rounds + 1):
            for name, one_round in (("plain", plain_round), ("ours", our_round)):
                begin = time.process_time()
                count = one_round(shards)
                if number:  # the first round warms up
                    rates[name].append(count / (time.process_time() - begin))
    plain, ours = (statistics.median(rates[name]) for name in ("plain", "ours"))
    print(f"plain loader {plain:.0f} samples/s/core, ours {ours:.0f} samples/s/core: {ours / plain:.1f} times as fast")


if __name__ == "__main__":
    main()
