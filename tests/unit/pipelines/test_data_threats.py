"""What a hostile dataset may try: S8 pickles, S9 pipes, S16 and S17 pictures, S19 names."""

from __future__ import annotations

import ast
import hashlib
import io
import struct
import tarfile
import tomllib
import warnings
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import PIL
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from packaging.requirements import Requirement
from packaging.version import Version
from PIL import Image

from segfleet.errors import DataError, SegfleetError
from segfleet_pipelines.datasets.sources import FileSource
from segfleet_pipelines.decode import decode_window
from segfleet_pipelines.loader import eval_samples
from segfleet_pipelines.manifest import FileInfo, Manifest
from segfleet_pipelines.picture import Window, check_pixels, decode_image, decode_mask, read_header
from segfleet_pipelines.reader import INDEX_SCHEMA, SampleIndex
from segfleet_pipelines.tool import main
from segfleet_pipelines.verify import check_shards, verify

ROOT = Path(__file__).parents[3]
SHARD = "train-000000.tar"
LOCATION_USES: list[Callable[[str], object]] = [
    Manifest.load,
    verify,
    lambda text: check_shards(text, "train"),
    lambda text: SampleIndex.load(text, "train"),
    lambda text: eval_samples(text, "train", rank=0, world_size=1),
]


def test_no_module_has_a_way_to_run_what_it_reads() -> None:
    """S8: neither pickle nor a decoder of WebDataset, which unpickles by default, nor an opener of pipes."""
    banned_modules = {"pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib"}
    banned_names = {"WebDataset", "gopen", "autodecode", "decode_pickle", "tar_file_expander", "url_opener"}
    for path in (ROOT / "pipelines/segfleet_pipelines").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import | ast.ImportFrom):
                modules = {alias.name.split(".")[0] for alias in node.names} | {
                    (getattr(node, "module", "") or "").split(".")[0]
                }
                assert not modules & banned_modules, path
            if isinstance(node, ast.Attribute):
                assert node.attr not in banned_names, path
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "load":
                assert getattr(node.func.value, "id", "") != "torch", path
                if getattr(node.func.value, "id", "") in ("np", "numpy"):
                    assert [word.arg for word in node.keywords] == ["allow_pickle"], path


@pytest.mark.parametrize("suffix", ["pkl", "pyd", "pth", "pickle"])
@pytest.mark.parametrize("in_place", [True, False])
def test_a_pickle_in_a_shard_is_never_loaded(tmp_path: Path, suffix: str, in_place: bool) -> None:
    """S8: the payload would make a file."""
    canary = tmp_path / "canary"
    payload = f"cos\nsystem\n(S'touch {canary}'\ntR.".encode()
    raw = tmp_path / "raw"
    raw.mkdir()
    (raw / "classes.yaml").write_text("names: [sky, road]\n")
    pixels = np.zeros((8, 8), np.uint8)
    with tarfile.open(raw / "train-0.tar", "w") as tar:
        for name, data in (("a.jpg", _png(pixels)), ("a.png", _png(pixels)), (f"a.{suffix}", payload)):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    out = raw if in_place else tmp_path / "out"
    assert main(["prepare", "folder", "--adopt", "--raw", str(raw), "--out", str(out), "--processes", "1"]) == 1
    assert not canary.exists()


@pytest.mark.parametrize("address", ["pipe:touch {canary}", "PIPE:touch {canary}", "pipe://touch {canary}", "gopen:x"])
@pytest.mark.parametrize("use", LOCATION_USES)
def test_no_address_starts_a_program(tmp_path: Path, use: Callable[[str], object], address: str) -> None:
    """S9: for WebDataset `pipe:` is a shell."""
    canary = tmp_path / "canary"
    with pytest.raises(SegfleetError, match="not a location"):
        use(address.format(canary=canary))
    assert main(["verify", address.format(canary=canary)]) == 1
    assert not canary.exists()


def _png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


def _bomb(side: int, depth: int, color: int) -> bytes:
    """A real black PNG: some kilobytes that decode to side x side pixels."""
    channels = {0: 1, 2: 3}[color]
    row = bytes(1 + (side * depth * channels + 7) // 8)
    packer = zlib.compressobj(9)
    pixels = b"".join([*(packer.compress(row) for _ in range(side)), packer.flush()])

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, depth, color, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


@pytest.fixture
def no_decoder(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever decodes a pixel fails the test."""

    def decode(*_: object, **__: object) -> None:
        raise AssertionError("pixels were decoded")

    monkeypatch.setattr(cv2, "imdecode", decode)
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", decode)
    monkeypatch.setattr("segfleet_pipelines.picture.check_png", decode)


def _jpeg_claims(width: int, height: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (16, 16)).save(buffer, format="JPEG")
    data = buffer.getvalue()
    place = data.index(b"\xff\xc0") + 5
    return data[:place] + struct.pack(">HH", height, width) + data[place + 4 :]


BOMBS = {
    "17 KB, 144 MP": _bomb(12_000, 1, 0),
    "8 KB, 64 MP": _bomb(8_000, 1, 0),
    "a JPEG that claims 4 GP": _jpeg_claims(65_535, 65_535),
}


@pytest.mark.usefixtures("no_decoder")
@pytest.mark.parametrize("name", BOMBS)
@pytest.mark.parametrize("read", [read_header, check_pixels, decode_image, decode_mask])
@pytest.mark.parametrize("quiet", [True, False])
def test_a_picture_bomb_is_refused_before_a_pixel_is_decoded(
    name: str, read: Callable[[bytes], object], quiet: bool
) -> None:
    """S16: between one and two times its limit Pillow only warns, and a warning can be turned off."""
    assert len(BOMBS[name]) < 25_000
    with warnings.catch_warnings():
        if quiet:
            warnings.simplefilter("ignore")
        with pytest.raises(DataError, match="more than 50,000,000 pixels"):
            read(BOMBS[name])


@pytest.mark.usefixtures("no_decoder")
@pytest.mark.parametrize("name", BOMBS)
@pytest.mark.parametrize("size", [(8, 8), (12_000, 12_000), (65_535, 65_535)])
def test_a_window_of_a_picture_bomb_is_refused_too(name: str, size: tuple[int, int]) -> None:
    with pytest.raises(DataError, match="more than 50,000,000 pixels"):
        decode_window(BOMBS[name], Window(0, 0, 8, 8), size)


def test_an_index_cannot_ask_for_more_memory_than_a_picture_may_take(dataset: Path) -> None:
    """S16: a mask's size comes from the index."""
    for height, width in ((2**31 - 1, 2**31 - 1), (7072, 7072), (0, 5), (-5, 5)):
        _forge_rows(dataset, {"height": height, "width": width})
        with pytest.raises(DataError, match="empty, or has more than 50,000,000 pixels"):
            SampleIndex.load(dataset, "train")


@pytest.mark.parametrize(
    "data",
    [
        b"SIMPLE  =                    T" + bytes(3000),  # FITS
        b"\xff\xfe" + struct.pack(">HH", 4, 4) + bytes(3000),  # GD
        b"STARTFONT 2.1\n" + bytes(3000),  # BDF
        b"%!PS-Adobe-3.0 EPSF-3.0\n" + bytes(3000),  # EPS, which Pillow would hand to Ghostscript
    ],
)
def test_other_formats_are_never_tried(data: bytes) -> None:
    """S16: each further parser is a further way in."""
    for read in (read_header, check_pixels, decode_image, decode_mask):
        with pytest.raises(DataError, match="neither a readable JPEG nor a readable PNG"):
            read(data)


def test_pillow_is_not_one_with_known_holes() -> None:
    """S17: CVE-2026-40192, -54059, -55379 and -55380 are closed in 12.3."""
    assert Version(PIL.__version__) >= Version("12.3")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    groups = [project["dependencies"], *project.get("optional-dependencies", {}).values()]
    pillow = [need for group in groups for need in map(Requirement, group) if need.name.lower() == "pillow"]
    assert pillow
    assert all("12.2.9" not in need.specifier and "12.3.0" in need.specifier for need in pillow)


OUTSIDE = [
    *("../x.tar", "/etc/hostname", "a/../../x.tar", "..\\x.tar", "%2e%2e%2fx.tar"),
    *("x\0.tar", "..tar", ".tar", "x", "", "pipe:x.tar"),
]


@pytest.mark.parametrize("name", OUTSIDE)
def test_a_manifest_cannot_lead_out_of_its_folder(dataset: Path, name: str) -> None:
    """S19: shards and index are names, not paths."""
    (dataset.parent / "x.tar").write_bytes(b"secret")
    manifest = Manifest.load(dataset)
    (shard,) = manifest.split("train").shards
    splits = manifest.splits | {"train": replace(manifest.split("train"), shards=(replace(shard, file=name),))}
    for forged in (replace(manifest, splits=splits), replace(manifest, index=replace(manifest.index, file=name))):
        (dataset / "manifest.json").write_bytes(forged.encode())
        for use in LOCATION_USES:
            with pytest.raises(DataError, match=r"is not a shard's name|index\.file is"):
                use(str(dataset))


@pytest.mark.parametrize("key", ["../x", "/x", "a/b", "a\\b", "..", "a.b", "", "a\0", "a\n", "\x1b[2J"])
def test_a_key_cannot_name_a_file_elsewhere(dataset: Path, key: str) -> None:
    """S19: jobs write files that are named after keys."""
    _forge_rows(dataset, {"key": key})
    with pytest.raises(DataError, match="a key is empty, or holds"):
        SampleIndex.load(dataset, "train")


def test_raw_data_are_files_and_no_addresses(tmp_path: Path) -> None:
    """S9, S19: a source is opened as a path, whatever it looks like."""
    with pytest.raises(DataError, match="cannot be read"):
        FileSource(tmp_path / "pipe:touch canary").read()


def _forge_rows(dataset: Path, change: dict[str, object]) -> None:
    """Change the first row, with hashes that fit."""
    path = dataset / "samples.parquet"
    rows = pq.read_table(path).to_pylist()
    rows[0] |= change
    pq.write_table(pa.Table.from_pylist(rows, schema=INDEX_SCHEMA), path)
    info = FileInfo(path.name, hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_size)
    (dataset / "manifest.json").write_bytes(replace(Manifest.load(dataset), index=info).encode())
