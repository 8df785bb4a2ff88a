from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from segfleet.errors import DataError
from segfleet_pipelines.image_codec import pack_image
from segfleet_pipelines.manifest import Manifest
from segfleet_pipelines.picture import read_header
from segfleet_pipelines.reader import SampleIndex
from segfleet_pipelines.verify import verify
from segfleet_pipelines.writer import prepare

MakeSpec = Callable[..., Any]
SMOOTH = np.asarray(Image.effect_mandelbrot((160, 96), (-2, -1, 1, 1), 60).convert("RGB"))


def encode(picture: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format=kind, **options)
    return buffer.getvalue()


def segments(data: bytes) -> dict[int, bytes]:
    """Marker -> content of each segment before the scan."""
    found, place = {}, 2
    while data[place + 1] != 0xDA:
        size = int.from_bytes(data[place + 2 : place + 4], "big")
        found[data[place + 1]] = data[place + 4 : place + 2 + size]
        place += 2 + size
    return found


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L"])
def test_a_png_becomes_a_jpeg_that_is_close_and_can_be_read_in_parts(mode: str) -> None:
    picture = Image.fromarray(SMOOTH).convert(mode)
    data = encode(picture, "PNG", icc_profile=b"profile")
    packed, suffix = pack_image(data, read_header(data), "jpeg95")
    assert suffix == "jpg"
    found = segments(packed)
    assert found[0xDD] == (8).to_bytes(2, "big")  # restart interval, in blocks
    components = found[0xC0][5]
    assert [found[0xC0][7 + 3 * i] for i in range(components)] == [0x11] * components  # no subsampling
    assert 0xE2 not in found  # the profile
    with Image.open(io.BytesIO(packed)) as decoded:
        assert decoded.mode == ("L" if mode == "L" else "RGB")
        expected = np.asarray(picture.convert(decoded.mode), np.int16)
        assert np.abs(np.asarray(decoded, np.int16) - expected).mean() < 1.5


def test_everything_else_stays_byte_for_byte() -> None:
    jpeg, png = (encode(Image.fromarray(SMOOTH), kind) for kind in ("JPEG", "PNG"))
    assert pack_image(jpeg, read_header(jpeg), "jpeg95") == (jpeg, "jpg")
    assert pack_image(jpeg, read_header(jpeg), "keep") == (jpeg, "jpg")
    assert pack_image(png, read_header(png), "keep") == (png, "png")


@pytest.mark.parametrize("images", ["keep", "jpeg95"])
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_a_cut_picture_is_refused(kind: str, images: Any) -> None:
    data = encode(Image.fromarray(SMOOTH), kind)[:-300]
    with pytest.raises(DataError, match="cut short"):
        pack_image(data, read_header(data), images)


def test_a_dataset_says_that_its_pictures_were_made_jpeg(raw: Path, tmp_path: Path, prepare_spec: MakeSpec) -> None:
    for images in ("keep", "jpeg95"):
        prepare(prepare_spec(raw=str(raw), out=str(tmp_path / images), images=images))
    keep, jpeg95 = (Manifest.load(tmp_path / images) for images in ("keep", "jpeg95"))
    assert (keep.images, jpeg95.images) == ("keep", "jpeg95")
    assert keep.content_id != jpeg95.content_id
    index = SampleIndex.load(tmp_path / "jpeg95", "train")
    assert {index.members(i)[0] for i in range(len(index))} == {"image.jpg"}
    assert not verify(tmp_path / "jpeg95").problems
