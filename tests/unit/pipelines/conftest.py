from __future__ import annotations

import io
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from segfleet.spec.kinds import PrepareSpec
from segfleet.spec.resolve import resolve_spec
from segfleet_pipelines.writer import prepare

NAMES = ("sky", "road", "tree")


def png(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, format="PNG")
    return buffer.getvalue()


def jpeg(array: np.ndarray, **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, format="JPEG", **options)
    return buffer.getvalue()


def write_raw(raw: Path, count: int = 11, seed: int = 0) -> Path:
    """A raw folder dataset: three classes, an ignored column, sizes that differ, JPEG and PNG."""
    rng = np.random.default_rng(seed)
    (raw / "images").mkdir(parents=True)
    (raw / "masks").mkdir()
    for i in range(count):
        height, width = (int(side) for side in rng.integers(20, 60, 2))
        image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        mask = rng.integers(0, 3, (height, width), dtype=np.uint8)
        mask[:, 0] = 255
        suffix, data = ("png", png(image)) if i % 3 == 0 else ("jpg", jpeg(image))
        (raw / "images" / f"s{i:02d}.{suffix}").write_bytes(data)
        (raw / "masks" / f"s{i:02d}.png").write_bytes(png(mask))
    (raw / "classes.yaml").write_text(f"names: [{', '.join(NAMES)}]\ncolors: [[0, 0, 255], [9, 9, 9], [0, 99, 0]]\n")
    return raw


def make_prepare_spec(**changes: Any) -> PrepareSpec:
    spec = resolve_spec({"kind": "prepare", "name": "test", "dataset": "folder", "processes": 1, **changes})
    assert isinstance(spec, PrepareSpec)
    return spec


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    return write_raw(tmp_path / "raw")


@pytest.fixture
def prepare_spec() -> Callable[..., PrepareSpec]:
    return make_prepare_spec


@pytest.fixture(scope="session")
def shared_dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared dataset that tests only read: 9 train and 2 val samples."""
    base = tmp_path_factory.mktemp("shared")
    prepare(make_prepare_spec(raw=str(write_raw(base / "raw")), out=str(base / "out")))
    return base / "out"


@pytest.fixture
def dataset(shared_dataset: Path, tmp_path: Path) -> Path:
    """A prepared dataset that a test may damage."""
    return shutil.copytree(shared_dataset, tmp_path / "dataset")


@pytest.fixture(autouse=True)
def _busy_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test outlives a power cut, so none waits for the disk."""
    monkeypatch.setattr(os, "fsync", lambda _handle: None)
