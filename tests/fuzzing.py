"""Damage a small prepared dataset, and see who notices."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image

from byte_surgery import damaged
from segfleet.errors import DataError
from segfleet.spec.kinds import PrepareSpec
from segfleet.spec.resolve import resolve_spec
from segfleet_pipelines.reader import SampleIndex
from segfleet_pipelines.verify import check_shards, verify
from segfleet_pipelines.writer import prepare

SPLITS = ("train", "val")
FILES = ("manifest.json", "samples.parquet", "train-000000.tar", "val-000000.tar")
SHARDS = FILES[2:]

Samples = dict[str, list[tuple[str, bytes, bytes]]]


def prepare_tiny(folder: Path, seed: int = 0) -> Path:
    """A prepared dataset of three training samples and one other, the same keys and sizes for every seed."""
    rng = np.random.default_rng(seed)
    for name in ("images", "masks"):
        (folder / "raw" / name).mkdir(parents=True)
    for i in range(4):
        image = Image.fromarray(rng.integers(0, 256, (24 + i, 31, 3), dtype=np.uint8))
        image.save(folder / "raw/images" / f"s{i}.{'png' if i == 1 else 'jpg'}")
        Image.fromarray(rng.integers(0, 3, (24 + i, 31), dtype=np.uint8)).save(folder / "raw/masks" / f"s{i}.png")
    (folder / "raw/classes.yaml").write_text("names: [sky, road, tree]\n")
    document = {"kind": "prepare", "name": "tiny", "dataset": "folder", "processes": 1}
    spec = resolve_spec(document | {"raw": str(folder / "raw"), "out": str(folder / "out")})
    assert isinstance(spec, PrepareSpec)
    prepare(spec)
    return folder / "out"


def read_samples(dataset: Path) -> Samples:
    """Every sample of every split that can be read; what cannot is a DataError and left out."""
    found: Samples = {}
    for split in SPLITS:
        index = SampleIndex.load(dataset, split)
        found[split] = []
        for i in range(len(index)):
            try:
                found[split].append(index.read_sample(i))
            except DataError:
                continue
    return found


def notices(dataset: Path, split: str) -> bool:
    """Whether a job would end before its first step."""
    try:
        return bool(check_shards(dataset, split))
    except DataError:
        return True


def finds(dataset: Path) -> bool:
    """Whether a person would be told."""
    try:
        return bool(verify(dataset).problems)
    except DataError:
        return True


def require_noticed(dataset: Path, sound: Samples, where: str) -> None:
    """A job and a person are told; what can still be read is what was prepared, so no picture has another's mask."""
    assert any(notices(dataset, split) for split in SPLITS), f"{where}: a job would begin"
    assert finds(dataset), f"{where}: verify finds nothing"
    try:
        readable = read_samples(dataset)
    except DataError:
        return
    for split in SPLITS:
        assert set(readable[split]) <= set(sound[split]), f"{where}: a sample that was never prepared"


def damage_at_random(sound_dataset: Path, dataset: Path, *, cases: int, seed: int) -> Counter[tuple[str, str]]:
    """Damage a copy of a dataset again and again, each file in turn; gives how often what was done to which file."""
    shutil.copytree(sound_dataset, dataset)
    sound = read_samples(dataset)
    rng = np.random.default_rng(seed)
    done: Counter[tuple[str, str]] = Counter()
    for case in range(cases):
        name = FILES[case % len(FILES)]
        before = (sound_dataset / name).read_bytes()
        kind, data = damaged(rng, before)
        (dataset / name).write_bytes(data)
        require_noticed(dataset, sound, f"case {case}, {kind} in {name}")
        (dataset / name).write_bytes(before)
        done[kind, name] += 1
    assert not any(notices(dataset, split) for split in SPLITS), "a sound dataset is called damaged"
    assert not finds(dataset), "a sound dataset is called damaged"
    return done
