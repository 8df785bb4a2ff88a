"""A picture of 8,000 x 8,000 pixels through the real command: within 4 GiB, everything included."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from registered import make_pulled_model
from segfleet_models.inference import WindowConfig

pytestmark = pytest.mark.integration

SIDE = 8000
GIB = 2**30
# The command, and what it took at most: memory in bytes, processor time in seconds. The kernel's VmHWM begins anew with
# each program; getrusage's maxrss would begin at what the process was before, a test runner of any size.
SCRIPT = (
    "import resource, sys\n"
    "from pathlib import Path\n"
    "from segfleet_jobs import predict\n"
    "code = predict.main(sys.argv[1:])\n"
    "used = resource.getrusage(resource.RUSAGE_SELF)\n"
    "lines = Path('/proc/self/status').read_text().splitlines()\n"
    "peak = next(int(line.split()[1]) for line in lines if line.startswith('VmHWM:')) * 1024\n"
    "print(peak, used.ru_utime + used.ru_stime)\n"
    "sys.exit(code)\n"
)


def test_a_very_large_picture_needs_less_than_4_gib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    window = WindowConfig(1024, 1024)
    model = make_pulled_model(
        tmp_path / "model", [f"c{i}" for i in range(4)], window=window, patch_size=32, img_size=1024
    )
    small = np.random.default_rng(0).integers(0, 256, (80, 80, 3), np.uint8)
    Image.fromarray(small).resize((SIDE, SIDE)).save(tmp_path / "large.jpg")
    command = [
        sys.executable,
        "-c",
        SCRIPT,
        "--model",
        model,
        tmp_path / "large.jpg",
        "--out",
        tmp_path / "out",
        "--json",
    ]
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr
    document, figures = done.stdout.splitlines()
    peak, seconds = (float(word) for word in figures.split())
    (entry,) = json.loads(document)["predictions"]
    for name in ("mask", "overlay"):
        with Image.open(entry[name]) as picture:
            assert picture.size == (SIDE, SIDE)
    print(f"peak {peak / GIB:.2f} GiB, {seconds:.0f} s of processor time")
    assert peak < 2 * GIB  # half of what is promised, for networks that are no toys
    assert seconds < 120  # of two processors
