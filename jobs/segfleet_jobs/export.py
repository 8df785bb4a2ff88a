"""`python -m segfleet_jobs.export`: a registered model as ONNX or as PyTorch's exported program, checked."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import json
import sys
import warnings
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from segfleet.cli.children import require
from segfleet.cli.output import clean
from segfleet.errors import DataError, ModelError, SegfleetError, SettingsError
from segfleet_jobs.prediction_files import written_whole
from segfleet_jobs.registered_model import RegisteredModel, fetch_registered
from segfleet_models.exported import INPUT, OUTPUTS, Answer, Parity, PicturesToLabels, compare, export_program

FORMATS = ("onnx", "torch")
_NEEDED_FOR_ONNX = ("onnx", "onnxscript", "onnxruntime")


def export_model(registered: RegisteredModel, format_: str, out: Path, size: tuple[int, int] | None) -> dict[str, Any]:
    """Write a model as one file, and a JSON beside it that says what it holds.

    Args:
        registered: The model.
        format_: One of FORMATS.
        out: The file; must not exist. The JSON's name is this one with `.json` behind it.
        size: Height and width of the pictures that the file will take; None: the model's window.

    Returns:
        The JSON's content.

    Raises:
        DataError: the file exists or cannot be written.
        ModelError: the model cannot be exported, or the file does not give what the model gives; none is left then.
        SettingsError: packages for the format are missing.
    """
    if format_ == "onnx":
        require("models export --format onnx", _NEEDED_FOR_ONNX, "export")
    if not out.name or out.is_dir():
        raise DataError(f"--out {str(out)!r} is a folder; name a file in it")
    description = out.with_name(out.name + ".json")
    for path in (out, description):
        if path.exists():
            raise DataError(f"{str(path)!r} exists; choose another --out or remove it")
    stored = registered.stored
    size = size or (stored.window.window, stored.window.window)
    module = PicturesToLabels(stored.model, stored.window.protocol).eval()
    with written_whole(out) as place:
        try:
            with _quietly():
                answer = _write_onnx(module, size, place) if format_ == "onnx" else _write_torch(module, size, place)
                parity = compare(module, answer, size)
        except OSError:
            raise
        except Exception as error:  # tracing fails in as many ways as there are operators
            raise ModelError(f"the model cannot be exported as {format_}: {error}") from error
        if not parity.holds:
            raise ModelError(
                f"the exported model differs from the model by up to {parity.max_difference:g} and agrees on "
                f"{parity.agreement:.2%} of the pixels; the file was not kept"
            )
        document = _description(registered, format_, size, parity)
        with written_whole(description) as beside:
            beside.write_text(json.dumps(document, indent=1), encoding="utf-8")
    return document


def _write_onnx(module: PicturesToLabels, size: tuple[int, int], path: Path) -> Answer:
    program = torch.onnx.export(
        export_program(module, size),
        dynamo=True,
        input_names=[INPUT],
        output_names=list(OUTPUTS),
        verbose=False,
    )
    assert program is not None
    program.save(path, external_data=False)
    # An optional package; its presence was checked at the door.
    session = importlib.import_module("onnxruntime").InferenceSession(path, providers=["CPUExecutionProvider"])

    def answer(pictures: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        labels, logits = session.run(list(OUTPUTS), {INPUT: pictures.numpy()})
        return torch.from_numpy(labels), torch.from_numpy(logits)

    return answer


def _write_torch(module: PicturesToLabels, size: tuple[int, int], path: Path) -> Answer:
    torch.export.save(export_program(module, size), path)
    loaded: Answer = torch.export.load(path).module()
    return loaded


def _description(registered: RegisteredModel, format_: str, size: tuple[int, int], parity: Parity) -> dict[str, Any]:
    stored, (height, width) = registered.stored, size
    model = stored.model
    labels = "uint8" if model.num_classes <= 255 else "int32"
    return {
        "model": registered.source,
        "run_id": registered.run_id,
        "format": format_,
        "input": {INPUT: f"uint8 (N, {height}, {width}, 3), RGB; normalisation is inside"},
        "outputs": {
            "labels": f"{labels} (N, {height}, {width})",
            "logits": f"float32 (N, {model.num_classes}, {height}, {width})",
        },
        "class_names": list(stored.class_names),
        "palette": [list(colour) for colour in stored.palette],
        "ignore_index": stored.ignore_index,
        "normalisation": {
            "mean": [round(value, 6) for value in model.mean.flatten().tolist()],
            "std": [round(value, 6) for value in model.std.flatten().tolist()],
        },
        "window": asdict(stored.window),
        "parity": asdict(parity),
    }


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Without what the exporters tell their own developers."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


def _size(text: str) -> tuple[int, int]:
    height, _, width = text.lower().partition("x")
    if not (height.isdecimal() and width.isdecimal() and int(height) and int(width)):
        raise argparse.ArgumentTypeError(f"{text!r} is no size; write height x width in pixels, such as 512x1024")
    return int(height), int(width)


def main(arguments: list[str] | None = None) -> int:
    """Entry point; the exit code is 0, 2 if there is no such model or package, or 1; the reason is on stderr."""
    parser = argparse.ArgumentParser(prog="segfleet models export", description="A model as one file, checked.")
    parser.add_argument("model", help="NAME@ALIAS, NAME/VERSION, or the folder of a pulled model")
    parser.add_argument("--format", choices=FORMATS, default="onnx")
    parser.add_argument("--out", required=True, type=Path, help="file to write")
    parser.add_argument("--size", type=_size, help="HxW of the pictures; the model's window if not given")
    parser.add_argument("--json", action="store_true", help="print the description as one JSON document")
    options = parser.parse_args(arguments)
    try:
        document = export_model(fetch_registered(options.model), options.format, options.out, options.size)
    except SegfleetError as error:
        print(f"error: {clean(error)}", file=sys.stderr)
        return 2 if isinstance(error, ModelError | SettingsError) else 1
    except KeyboardInterrupt:
        print("error: interrupted; nothing was written", file=sys.stderr)
        return 1
    if options.json:
        print(json.dumps({"file": str(options.out), **document}))
    else:
        parity = document["parity"]
        print(clean(f"{options.out}: {document['model']}, takes {document['input'][INPUT]}"))
        print(
            f"checked against the model: logits differ by at most {parity['max_difference']:.2g} "
            f"(of {parity['logit_range']:.2g}), labels agree on {parity['agreement']:.4%} of the pixels"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
