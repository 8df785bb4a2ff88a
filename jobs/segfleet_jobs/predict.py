"""`python -m segfleet_jobs.predict`: label maps and overlays of pictures, by any registered model."""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import mlflow.pyfunc
import numpy as np

from segfleet.client import Client
from segfleet.errors import DataError, ModelError, SegfleetError, SettingsError
from segfleet_jobs.pictures import encode_png
from segfleet_pipelines.datasets.cityscapes import export_prediction
from segfleet_pipelines.datasets.class_table import class_table
from segfleet_pipelines.picture import Pixels, decode_image, encode_mask, overlay

# Benchmarks whose evaluators want other labels than ours, and file names of their own: labels and stem -> name, PNG.
LABEL_IDS: dict[str, Callable[[Pixels, str], tuple[str, bytes]]] = {"cityscapes": export_prediction}


def load_model(folder: Path) -> Any:
    """Load a pulled model version.

    Raises:
        ModelError: the folder holds no whole model.
    """
    # A registered model is a safetensors file and plain code that came from our own registry; pickle stays refused.
    os.environ["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] = "false"
    try:
        # MLflow's advice to the model's author is of no use to somebody who wants a mask.
        with warnings.catch_warnings(record=True):
            return mlflow.pyfunc.load_model(str(folder))
    except Exception as error:
        raise ModelError(f"the model in {str(folder)!r} cannot be loaded: {error}") from error


def predict_files(model: Any, images: list[Path], out: Path, label_ids: str | None = None) -> list[dict[str, Any]]:
    """Write `STEM.png` (labels as palette indices) and `STEM-overlay.png` for each picture.

    Args:
        model: As MLflow loads it.
        images: JPEG or PNG files.
        out: Folder for the results.
        label_ids: One of LABEL_IDS, to write `labelIds/NAME.png` besides, as that benchmark's evaluator wants it.

    Raises:
        DataError: a picture cannot be read, a result would overwrite a picture or another result, the folder cannot
            be written to, or the model or a picture's name does not fit the benchmark.
    """
    _refuse_overwriting(images, out)
    wrapped = model.unwrap_python_model()
    if label_ids and tuple(wrapped.class_names) != tuple(class_table(label_ids).names):
        raise DataError(f"the model's classes are not those of {label_ids}; leave --label-ids out")
    written = []
    for path in images:
        picture = _read(path)
        labels = np.asarray(model.predict(picture[None]))[0].astype(np.uint8)
        mask_file, overlay_file = _result_files(path, out)
        files = {
            "mask": (mask_file, encode_mask(labels, wrapped.palette)),
            "overlay": (overlay_file, encode_png(overlay(picture, labels, wrapped.palette))),
        }
        if label_ids:
            # In a folder of their own: the evaluator takes every picture that begins with the name for a prediction.
            name, data = LABEL_IDS[label_ids](labels, path.stem)
            files["label_ids"] = (out / "labelIds" / name, data)
        _write(files.values(), out)
        counts = np.bincount(labels.ravel(), minlength=len(wrapped.class_names)) / labels.size
        shares = {
            name: round(float(share), 4) for name, share in zip(wrapped.class_names, counts, strict=True) if share
        }
        targets = {what: str(target) for what, (target, _) in files.items()}
        written.append({"image": str(path), **targets, "shares": shares})
    return written


def _result_files(image: Path, out: Path) -> tuple[Path, Path]:
    """Mask and overlay of a picture."""
    return out / f"{image.stem}.png", out / f"{image.stem}-overlay.png"


def _refuse_overwriting(images: list[Path], out: Path) -> None:
    results = Counter(file for image in images for file in _result_files(image, out))
    if doubled := sorted(file.name for file, count in results.items() if count > 1):
        raise DataError(f"several pictures would have the results {', '.join(doubled)}; rename them")
    pictures = {os.path.realpath(image): str(image) for image in images}
    if lost := sorted(pictures[place] for place in map(os.path.realpath, results) if place in pictures):
        raise DataError(f"results would overwrite the pictures themselves: {', '.join(lost)}; choose another --out")


def _read(path: Path) -> Pixels:
    try:
        return decode_image(path.read_bytes())
    except (OSError, DataError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise DataError(f"picture {str(path)!r}: {reason}") from error


def _write(files: Iterable[tuple[Path, bytes]], out: Path) -> None:
    try:
        for target, data in files:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(data)
    except OSError as error:
        raise DataError(f"{str(out)!r} cannot be written to: {error.strerror}; choose another --out") from error


def main(arguments: list[str] | None = None) -> int:
    """Entry point; the exit code is 0, 2 if there is no such model, or 1; a failure's reason is on stderr."""
    parser = argparse.ArgumentParser(prog="segfleet predict", description="Masks and overlays of pictures.")
    parser.add_argument("--model", required=True, help="NAME@ALIAS, NAME/VERSION, or the folder of a pulled model")
    parser.add_argument("images", nargs="+", type=Path, help="JPEG or PNG pictures")
    parser.add_argument("--out", required=True, type=Path, help="folder for the results")
    parser.add_argument("--label-ids", choices=LABEL_IDS, help="write labelIds/ for this benchmark's evaluator besides")
    parser.add_argument("--json", action="store_true", help="print what was written as one JSON document")
    options = parser.parse_args(arguments)
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    try:
        with tempfile.TemporaryDirectory(prefix="segfleet-predict-") as scratch:
            folder = Path(options.model)
            if not (folder / "MLmodel").is_file():
                with Client() as client:
                    folder = client.pull(options.model, Path(scratch) / "model")
            written = predict_files(load_model(folder), options.images, options.out, options.label_ids)
    except SegfleetError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, ModelError | SettingsError) else 1
    if options.json:
        print(json.dumps({"predictions": written}))
    else:
        for entry in written:
            largest = sorted(entry["shares"].items(), key=lambda item: -item[1])[:4]
            print(f"{entry['overlay']}: " + ", ".join(f"{name} {share:.0%}" for name, share in largest))
    return 0


if __name__ == "__main__":
    sys.exit(main())
