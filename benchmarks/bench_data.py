"""Training samples per second and core: ours beside other loaders that do the same work on the same shards.

--set ade20k      JPEG of 683 x 512, crop 512
--set cityscapes  PNG of 2048 x 1024, crop 768; then the same pictures stored as jpeg95

Everything runs on one thread. A round takes every loader once over all samples; the figures are medians of CPU time
over the rounds. Other work on the same machine slows all of them down alike: trust the ratios first.
Run: python benchmarks/bench_data.py [--set SET] [--photos DIR] [--samples N] [--rounds N]
"""

from __future__ import annotations

import argparse
import functools
import itertools
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

import cv2
import simplejpeg
import torch

import peers
from photos import DATASETS, Dataset, make_dataset, prepare_raw
from segfleet.spec.sections import AugmentSpec, DataSpec, LoopSpec
from segfleet_pipelines import augment, batch
from segfleet_pipelines.loader import train_loader
from segfleet_pipelines.reader import SampleIndex

Round = Callable[[], int]

BATCH = 8


def peer_round(shards: Path, build: peers.Peer) -> int:
    """Every training sample once through another loader; how many."""
    return sum(build(sample) is not None for sample in peers.read_samples(shards))


def our_rounds(shards: Path, kind: Dataset, on_device: bool) -> Round:
    """As many samples as the split has from our loader, in batches; the loader goes on where the last round ended."""
    per_round = len(SampleIndex.load(shards, "train")) // BATCH
    config = AugmentSpec(short_side=kind.short_side, max_ratio=kind.max_ratio, on_device=on_device)
    loop = LoopSpec(steps=per_round * 1000, global_batch=BATCH, crop=kind.crop, loader_processes=0)
    batches = iter(train_loader(DataSpec(shards=str(shards)), config, loop))
    return lambda: sum(len(found.keys) for found in itertools.islice(batches, per_round))


def decoder_round(shards: Path) -> int:
    """Every training sample's picture and mask decoded whole, by the fastest decoder for whole pictures."""
    count = 0
    for sample in peers.read_samples(shards):
        data = peers.image_bytes(sample)
        if data.startswith(b"\xff\xd8"):
            simplejpeg.decode_jpeg(data)
        else:
            import pyspng

            pyspng.load(data)
        peers.mask_pixels(sample)
        count += 1
    return count


def measure(rounds: dict[str, Round], repeats: int) -> dict[str, float]:
    """Median samples a second of CPU time, the rounds interleaved; a first one warms up."""
    rates: dict[str, list[float]] = {name: [] for name in rounds}
    for repeat in range(repeats + 1):
        for name, one_round in rounds.items():
            begin = time.process_time()
            count = one_round()
            if repeat:
                rates[name].append(count / (time.process_time() - begin))
    return {name: statistics.median(values) for name, values in rates.items()}


def print_table(title: str, rates: dict[str, float]) -> None:
    """Samples a second and core, milliseconds a sample, and the ratio to the first row."""
    first = next(iter(rates.values()))
    print(f"\n{title}\n{'':54}{'samples/s/core':>15}{'ms':>9}{'ratio':>8}")
    for name, rate in rates.items():
        print(f"{name:54}{rate:15.1f}{1000 / rate:9.3f}{rate / first:7.1f}x")


def print_stages(title: str, one_round: Round) -> None:
    """CPU time a sample of each stage of our loader."""
    one_round()
    spent: dict[str, float] = {}
    with _timed(spent):
        begin = time.process_time()
        count = one_round()
        total = time.process_time() - begin
    print(f"\n{title}: CPU time a sample, ms")
    for name, seconds in {**spent, "pad, stack, rest": total - sum(spent.values())}.items():
        print(f"  {name:20}{1000 * seconds / count:9.3f}{100 * seconds / total:7.1f} %")


@contextmanager
def _timed(spent: dict[str, float]) -> Iterator[None]:
    """Count the time of the stages' functions while the block runs; none of them calls another."""
    stages: list[tuple[str, Any, str]] = [
        ("read", SampleIndex, "read_sample"),
        ("mask", batch, "unpack_mask"),
        ("window search", augment, "choose_crop"),
        ("decode", augment, "decode_window"),
        ("resize", augment, "_resized"),
        ("photometric, flip", augment, "apply_jitter"),
    ]
    patches = [
        mock.patch.object(place, name, _counting(getattr(place, name), stage, spent)) for stage, place, name in stages
    ]
    for patch in patches:
        patch.start()
    try:
        yield
    finally:
        for patch in patches:
            patch.stop()


def _counting(function: Callable[..., Any], stage: str, spent: dict[str, float]) -> Callable[..., Any]:
    spent.setdefault(stage, 0.0)

    @functools.wraps(function)
    def counted(*args: Any, **kwargs: Any) -> Any:
        begin = time.process_time()
        try:
            return function(*args, **kwargs)
        finally:
            spent[stage] += time.process_time() - begin

    return counted


def bench_training(name: str, folder: Path, photos: Path | None, samples: int, repeats: int) -> None:
    """A dataset's training samples, by the peers and by us."""
    kind = DATASETS[name]
    raw = make_dataset(folder, kind, photos, samples)
    shards = {"": prepare_raw(raw, folder / "shards")}
    if kind.suffix == "png":
        shards["jpeg95: "] = prepare_raw(raw, folder / "jpeg95", "jpeg95")
    rounds: dict[str, Round] = {}
    for prefix, place in shards.items():
        for label, build in (
            ("reference's transforms", peers.reference(kind)),
            ("torchvision v2", peers.torchvision(kind)),
            ("albumentations", peers.albumentations(kind)),
        ):
            if build is None:
                print(f"{label} is not installed and left out; `make bench-data` installs it")
            else:
                rounds[prefix + label] = functools.partial(peer_round, place, build)
        rounds[prefix + "ours"] = our_rounds(place, kind, False)
        rounds[prefix + "ours, colour and flip left to the device"] = our_rounds(place, kind, True)
        rounds[prefix + "decoding alone, whole pictures"] = functools.partial(decoder_round, place)
    for prefix, place in shards.items():
        sizes = [len(peers.image_bytes(sample)) for sample in peers.read_samples(place)]
        print(
            f"{prefix}{len(sizes)} pictures of {kind.width}x{kind.height}, {sum(sizes) / len(sizes) / 1000:.0f} kB each"
        )
    print_table(f"{name}: crop {kind.crop}, scale 0.5 to 2, class cap 0.75", measure(rounds, repeats))
    for prefix, place in shards.items():
        print_stages(f"{prefix}ours", our_rounds(place, kind, False))


def main() -> None:
    """Make the pictures, print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", choices=DATASETS, help="default: both")
    parser.add_argument("--photos", type=Path, help="prepared dataset, or folder of pictures and masks of equal stems")
    parser.add_argument("--samples", type=int, help="default: 129 of ade20k, 25 of cityscapes")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    for name in [options.set] if options.set else DATASETS:
        samples = options.samples or (25 if name == "cityscapes" else 129)
        with tempfile.TemporaryDirectory() as folder:
            bench_training(name, Path(folder), options.photos, samples, options.rounds)


if __name__ == "__main__":
    main()
