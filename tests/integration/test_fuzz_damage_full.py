"""As tests/unit/pipelines/test_fuzz_damage.py and test_fuzz_decoders.py, with more cases."""

from __future__ import annotations

from pathlib import Path

import pytest

from decoder_fuzz import Decoders
from fuzzing import damage_at_random, prepare_tiny

pytestmark = pytest.mark.integration


def test_a_thousand_random_damages_are_all_noticed(tmp_path: Path) -> None:
    done = damage_at_random(prepare_tiny(tmp_path), tmp_path / "damaged", cases=1000, seed=2026)
    assert done.total() == 1000


@pytest.mark.parametrize("name", Decoders(Path()).all)
def test_damaged_bytes_end_in_a_data_error_or_are_read(tmp_path: Path, name: str) -> None:
    assert Decoders(tmp_path).fuzz(name, cases=2000, seed=31)["refused"] > 100
