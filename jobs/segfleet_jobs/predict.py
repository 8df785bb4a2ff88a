"""`python -m segfleet_jobs.predict`: label maps and overlays of pictures, by any registered model."""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import mlflow.pyfunc
import numpy as np

from segfleet.client import Client
from segfleet.errors import DataError, ModelError, SegfleetError, SettingsError
from segfleet_jobs.pictures import encode_png
from segfleet_pipelines.picture import decode_image, encode_mask, overlay


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


def predict_files(model: Any, images: list[Path], out: Path) -> list[dict[str, Any]]:
    """Write `STEM.png` (labels as palette indices) and `STEM-overlay.png` for each picture.

    Raises:
        DataError: a picture cannot be read, two share a stem, or the folder cannot be written to.
    """
    stems = [image.stem for image in images]
    doubled = sorted({stem for stem in stems if stems.count(stem) > 1})
    if doubled:
        raise DataError(f"pictures with equal names would overwrite each other: {', '.join(doubled)}; rename them")
    wrapped = model.unwrap_python_model()
    written = []
    for path in images:
        try:
            picture = decode_image(path.read_bytes())
        except (OSError, DataError) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error)
            raise DataError(f"picture {str(path)!r}: {reason}") from error
        labels = np.asarray(model.predict(picture[None]))[0].astype(np.uint8)
        mask_path, overlay_path = out / f"{path.stem}.png", out / f"{path.stem}-overlay.png"
        try:
            out.mkdir(parents=True, exist_ok=True)
            mask_path.write_bytes(encode_mask(labels, wrapped.palette))
            overlay_path.write_bytes(encode_png(overlay(picture, labels, wrapped.palette)))
        except OSError as error:
            raise DataError(f"{str(out)!r} cannot be written to: {error.strerror}; choose another --out") from error
        counts = np.bincount(labels.ravel(), minlength=len(wrapped.class_names)) / labels.size
        shares = {
            name: round(float(share), 4) for name, share in zip(wrapped.class_names, counts, strict=True) if share
        }
        written.append({"image": str(path), "mask": str(mask_path), "overlay": str(overlay_path), "shares": shares})
    return written


def main(arguments: list[str] | None = None) -> int:
    """Entry point; the exit code is 0, 2 if there is no such model, or 1; a failure's reason is on stderr."""
    parser = argparse.ArgumentParser(prog="segfleet predict", description="Masks and overlays of pictures.")
    parser.add_argument("--model", required=True, help="NAME@ALIAS, NAME/VERSION, or the folder of a pulled model")
    parser.add_argument("images", nargs="+", type=Path, help="JPEG or PNG pictures")
    parser.add_argument("--out", required=True, type=Path, help="folder for the results")
    parser.add_argument("--json", action="store_true", help="print what was written as one JSON document")
    options = parser.parse_args(arguments)
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    try:
        with tempfile.TemporaryDirectory(prefix="segfleet-predict-") as scratch:
            folder = Path(options.model)
            if not (folder / "MLmodel").is_file():
                with Client() as client:
                    folder = client.pull(options.model, Path(scratch) / "model")
            written = predict_files(load_model(folder), options.images, options.out)
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
