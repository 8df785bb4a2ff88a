from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco

from segfleet.errors import DataError
from segfleet_pipelines.datasets import json_stream, rle
from segfleet_pipelines.datasets.json_stream import stream_items
from segfleet_pipelines.datasets.rle import decode_runs


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of pycocotools itself
@settings(max_examples=200, deadline=None)
@given(st.integers(1, 70), st.integers(1, 70), st.floats(0, 1), st.integers(0, 2**31))
def test_run_lengths_are_decoded_as_the_official_code_does(height: int, width: int, share: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    region = np.repeat(rng.random((height, width)) < share, rng.integers(1, 30), axis=0)[:height]
    encoded = coco.encode(np.asfortranarray(region.astype(np.uint8)))
    decoded = decode_runs(encoded["counts"], height, width)
    assert (decoded == region).all()
    assert (decoded == coco.decode(encoded).astype(bool)).all()


@settings(max_examples=500, deadline=None)
@given(st.binary(max_size=40))
def test_no_text_gives_anything_but_a_whole_mask_or_an_error(counts: bytes) -> None:
    try:
        region = decode_runs(counts, 9, 7)
    except DataError:
        return
    assert region.shape == (9, 7)


@pytest.mark.parametrize("counts", [b"", b"o", b"hld03a", b"\xff\x00", b"0" * 9, b"ooooooooo0"])
def test_damaged_run_lengths_are_refused(counts: bytes) -> None:
    with pytest.raises(DataError, match="run lengths"):
        decode_runs(counts, 9, 7)


DOCUMENT: dict[str, Any] = {
    "info": {"list": [1, 2], "text": 'a "quoted" ] } , text \u00e9'},
    "number": 12345.5e-3,
    "empty": [],
    "numbers": [1, 22, 333, -4.5, 10**20],
    "nested": [{"a": [[1], {"b": None}]}, "x]", [True, False], {}],
    "last": [{"text": "y" * 50}],
}


@pytest.mark.parametrize("chunk", [1, 2, 3, 7, 50, 10_000])
@pytest.mark.parametrize("indent", [None, 2])
def test_a_file_is_read_item_by_item_whatever_the_window(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int, indent: int | None
) -> None:
    monkeypatch.setattr(json_stream, "_CHUNK", chunk)
    path = tmp_path / "a.json"
    path.write_text(json.dumps(DOCUMENT, indent=indent, ensure_ascii=False), encoding="utf-8")
    found: dict[str, list[Any]] = {}
    for name, item in stream_items(path):
        found.setdefault(name, []).append(item)
    assert found == {name: value for name, value in DOCUMENT.items() if isinstance(value, list) and value}


def test_memory_is_that_of_an_item_not_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"list": ["x" * 100_000] * 200}))
    tracemalloc.start()
    try:
        assert sum(len(item) for _, item in stream_items(path)) == 20_000_000
        assert tracemalloc.get_traced_memory()[1] < 8_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("cut", [1, 10, 40, 100, -1])
def test_a_file_cut_short_is_refused(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps(DOCUMENT)[:cut])
    with pytest.raises(DataError, match=r"a\.json is not whole JSON"):
        list(stream_items(path))


def test_what_is_no_json_object_is_refused(tmp_path: Path) -> None:
    for text in ("", "[1, 2]", "[" * 100_000, '{"a": ' + "[" * 100_000, "\x80", '{"a": [' + "9" * 5000 + "]}"):
        (tmp_path / "a.json").write_bytes(text.encode("latin-1"))
        with pytest.raises(DataError, match=r"a\.json"):
            list(stream_items(tmp_path / "a.json"))
    with pytest.raises(DataError, match="cannot be read"):
        list(stream_items(tmp_path / "b.json"))


def test_runs_whose_sum_comes_round_to_the_right_number_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rle, "_runs", lambda _: np.array([2**63 - 1, 2**63 - 1, 9 * 7 + 2]))
    with pytest.raises(DataError, match="do not fill a mask"):
        decode_runs(b"0", 9, 7)
