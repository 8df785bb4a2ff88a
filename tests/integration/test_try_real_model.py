"""A picture tried on a real model: the command in its own process, as the service runs it."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from registered import make_pulled_model
from segfleet.errors import DataError
from segfleet.tryout import child

pytestmark = pytest.mark.integration


def test_a_picture_is_predicted_and_what_is_none_is_told(tmp_path: Path) -> None:
    model = make_pulled_model(tmp_path / "model", always=2)
    (tmp_path / "work").mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG")
    found = child.predict(model, file.getvalue(), tmp_path / "work")
    assert found.shares == {"green": 1.0}
    assert found.colors["green"] == "#5073b4"
    with Image.open(io.BytesIO(found.overlay)) as overlay:
        assert (overlay.format, overlay.size) == ("PNG", (80, 60))
    (tmp_path / "again").mkdir()
    with pytest.raises(DataError, match="cannot be predicted: damaged"):
        child.predict(model, file.getvalue()[:600], tmp_path / "again")
