"""The prediction of one picture in a process of its own: the service decodes no picture and knows no torch."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segfleet.cli.children import require
from segfleet.cli.output import clean_line
from segfleet.errors import DataError, ModelError, SettingsError
from segfleet.settings import bare_environment

MAX_PICTURE_BYTES = 20 << 20
MAX_MEGAPIXELS = 16
TIME_LIMIT_S = 180.0
MODULE = "segfleet_jobs.predict"
# Behind jobs and the service itself.
_NICENESS = 10
_BEGINNINGS = {b"\xff\xd8\xff": "jpg", b"\x89PNG\r\n\x1a\n": "png"}


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a model makes of a picture.

    Attributes:
        overlay: The picture blended with the classes' colours, a PNG.
        shares: Share of the pixels of each class that is there, 0..1.
        colors: `#rrggbb` of each class.
    """

    overlay: bytes
    shares: Mapping[str, float]
    colors: Mapping[str, str]


def why_not() -> str:
    """Why this server cannot predict; empty: it can."""
    try:
        require("predict", ("segfleet_jobs", "torch", "timm", "PIL"), "train")
    except SettingsError as error:
        return str(error)
    return ""


def suffix_of(picture: bytes) -> str:
    """`jpg` or `png`.

    Raises:
        DataError: it is neither, or too large.
    """
    if not picture:
        raise DataError("no picture was sent; choose one")
    if len(picture) > MAX_PICTURE_BYTES:
        raise DataError(f"the picture has more than {MAX_PICTURE_BYTES >> 20} MiB; make it smaller")
    for beginning, suffix in _BEGINNINGS.items():
        if picture.startswith(beginning):
            return suffix
    raise DataError("this is neither a JPEG nor a PNG; save the picture as one of them")


def predict(model: Path, picture: bytes, work: Path, time_limit_s: float = TIME_LIMIT_S) -> Prediction:
    """Predict a picture on the processor: the GPUs belong to the jobs.

    Args:
        model: Folder of a pulled model.
        picture: A JPEG or PNG.
        work: An empty folder for the picture and the results.
        time_limit_s: Then the process is killed.

    Raises:
        DataError: the picture cannot be read, or it took too long.
        ModelError: the model cannot be loaded.
    """
    source, out = work / f"picture.{suffix_of(picture)}", work / "out"
    source.write_bytes(picture)
    limits = ["--max-megapixels", str(MAX_MEGAPIXELS)]
    arguments = ["--model", str(model), "--out", str(out), *limits, "--json", "--", str(source)]
    code, told, complaint = _run([MODULE, *arguments], work, time_limit_s)
    document = _document(told)
    if document is None:
        said = [clean_line(line) for line in complaint.splitlines() if line.startswith("error: ")]
        reason = said[-1].removeprefix("error: ") if said else f"its process ended with {code}"
        raise ModelError(f"the model cannot be tried: {reason.replace(str(model), model.name)}")
    if document["failed"]:
        # What it goes on to say is about the command's options.
        raise DataError(f"the picture cannot be predicted: {document['failed'][0]['reason'].partition('; ')[0]}")
    overlay = (out / f"{source.stem}-overlay.png").read_bytes()
    return Prediction(overlay, document["predictions"][0]["shares"], document["colors"])


def _run(command: list[str], work: Path, time_limit_s: float) -> tuple[int, str, str]:
    env = bare_environment({"HOME": str(work), "CUDA_VISIBLE_DEVICES": ""})
    pipe = subprocess.PIPE
    with subprocess.Popen(
        [sys.executable, "-P", "-m", *command],
        env=env,
        cwd=work,
        stdin=subprocess.DEVNULL,
        stdout=pipe,
        stderr=pipe,
        start_new_session=True,
        text=True,
        errors="replace",
    ) as child:
        try:
            os.setpriority(os.PRIO_PROCESS, child.pid, _NICENESS)
            told, complaint = child.communicate(timeout=time_limit_s)
        except subprocess.TimeoutExpired as error:
            raise DataError(
                f"the prediction took longer than {time_limit_s:g} s; try a smaller picture or a smaller model"
            ) from error
        finally:
            if child.returncode is None:
                os.killpg(child.pid, signal.SIGKILL)
    return child.returncode, told, complaint


def _document(told: str) -> Any:
    try:
        return json.loads(told)
    except ValueError:
        return None
