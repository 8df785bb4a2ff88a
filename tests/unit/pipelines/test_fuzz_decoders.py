from __future__ import annotations

from pathlib import Path

import pytest

from decoder_fuzz import Decoders


@pytest.mark.parametrize("name", Decoders(Path()).all)
def test_sound_bytes_are_read(tmp_path: Path, name: str) -> None:
    inputs, read = Decoders(tmp_path).all[name]
    for data in inputs:
        read(data)


@pytest.mark.parametrize("name", Decoders(Path()).all)
def test_damaged_bytes_end_in_a_data_error_or_are_read(tmp_path: Path, name: str) -> None:
    ends = Decoders(tmp_path).fuzz(name, cases=150, seed=30)
    assert ends["refused"] >= 10
