"""`python -m segfleet_jobs.report`: what a finished training did, as a page of tables, curves and pictures."""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import mlflow
from matplotlib import pyplot

from segfleet.client import Client
from segfleet.errors import SegfleetError, ServiceError

CURVES = {"loss": "train/loss", "lr": "train/lr", "miou": "val/miou", "samples_per_s": "train/samples_per_s"}
Curve = list[tuple[int, float]]


def fetch_curves(client: mlflow.MlflowClient, run_id: str) -> dict[str, Curve]:
    """The run's curves as (step, value) points in order of steps."""
    return {
        name: sorted((point.step, point.value) for point in client.get_metric_history(run_id, key))
        for name, key in CURVES.items()
    }


def smoothed(curve: Curve, weight: float = 0.9) -> Curve:
    """Exponential mean without the start's bias, for reading a noisy loss."""
    mean, norm, result = 0.0, 0.0, []
    for step, value in curve:
        mean, norm = weight * mean + (1 - weight) * value, weight * norm + (1 - weight)
        result.append((step, mean / norm))
    return result


def draw_curves(curves: Mapping[str, Curve], baseline: float, path: Path) -> None:
    """Loss, mIoU and learning rate over the steps."""
    figure, (left, middle, right) = pyplot.subplots(1, 3, figsize=(13, 3.6), layout="constrained")
    left.plot(*_axes(curves["loss"]), color="#9ab8d8", linewidth=0.8, label="each point")
    left.plot(*_axes(smoothed(curves["loss"])), color="#1f4e8c", linewidth=1.6, label="smoothed")
    left.set(title="training loss", xlabel="step")
    left.legend(frameon=False)
    middle.plot(*_axes(curves["miou"]), color="#217a3c", marker="o", markersize=3.5)
    middle.axhline(baseline, color="#888888", linestyle="--", linewidth=1)
    middle.annotate("always the commonest class", (0.02, baseline), xycoords=("axes fraction", "data"), va="bottom")
    middle.set(title="validation mIoU", xlabel="step", ylim=(0, 1))
    right.plot(*_axes(curves["lr"]), color="#a05010")
    right.set(title="learning rate", xlabel="step")
    for axes in (left, middle, right):
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def draw_classes(iou: Mapping[str, float | None], path: Path) -> None:
    """IoU of each class as bars, the best on top; classes that do not occur are left out."""
    present = sorted(((value, name) for name, value in iou.items() if value is not None))
    figure, axes = pyplot.subplots(figsize=(7, 0.9 + 0.27 * len(present)), layout="constrained")
    bars = axes.barh([name for _, name in present], [value for value, _ in present], color="#3a76b0")
    axes.bar_label(bars, labels=[f"{value:.3f}" for value, _ in present], padding=3, fontsize=8)
    axes.set(xlim=(0, 1.08), xlabel="IoU", title="per class")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def write_report(job: Mapping[str, Any], client: mlflow.MlflowClient, out: Path) -> dict[str, str]:
    """Write report.md with its pictures.

    Args:
        job: A succeeded training job as the service describes it.
        client: Of the MLflow server that tracked it.
        out: Folder for the files, made if it is not there.

    Returns:
        Paths of the files by what they show.

    Raises:
        ServiceError: the job has no result to report.
    """
    result = job.get("result") or {}
    if job["kind"] != "train" or "miou" not in result:
        raise ServiceError(
            f"job {job['id']} is a {job['kind']} job in state {job['state']}; a report needs a succeeded training"
        )
    out.mkdir(parents=True, exist_ok=True)
    run_id = result["mlflow_run"]
    files = {"report": out / "report.md", "curves": out / "curves.png", "classes": out / "classes.png"}
    curves = fetch_curves(client, run_id)
    draw_curves(curves, result["baseline_miou"], files["curves"])
    draw_classes(result["iou"], files["classes"])
    sheet = _best_sheet(client, run_id, result["best_step"], out)
    if sheet is not None:
        files["predictions"] = sheet
    files["report"].write_text(_markdown(job, result, curves, sheet is not None), encoding="utf-8")
    return {name: str(path) for name, path in files.items()}


def _best_sheet(client: mlflow.MlflowClient, run_id: str, step: int, out: Path) -> Path | None:
    name = f"predictions/step-{step:08d}.png"
    if name not in {entry.path for entry in client.list_artifacts(run_id, "predictions")}:
        return None
    with tempfile.TemporaryDirectory() as scratch:
        content = Path(client.download_artifacts(run_id, name, scratch)).read_bytes()
    path = out / "predictions.png"
    path.write_bytes(content)
    return path


def _markdown(job: Mapping[str, Any], result: Mapping[str, Any], curves: Mapping[str, Curve], has_sheet: bool) -> str:
    spec, baseline = job["spec"], result["baseline_miou"]
    speed = [value for _, value in curves["samples_per_s"] if math.isfinite(value)]
    figures = [
        ("val mIoU (best)", f"{result['miou']:.4f} at step {result['best_step']}"),
        ("always the commonest class", f"{baseline:.4f} ({result['miou'] / baseline:.1f} times)"),
        ("pixel accuracy", f"{result['pixel_accuracy']:.4f}"),
        ("mean class accuracy", f"{result['mean_accuracy']:.4f}"),
        ("validation pictures", str(result["num_samples"])),
        (
            "model",
            f"{spec['model']['backbone']}, patch {spec['model']['patch_size']}, {spec['model']['decoder']} decoder",
        ),
        ("parameters", f"{result['num_parameters']:,}"),
        ("steps, global batch, crop", "{steps}, {global_batch}, {crop}".format(**spec["train"])),
        ("workers", str(spec["resources"]["workers"])),
        ("training samples/s (median)", f"{sorted(speed)[len(speed) // 2]:.2f}" if speed else "-"),
        ("skipped steps", str(result["skipped_steps"])),
        *((f"seconds in {part}", f"{seconds:.1f}") for part, seconds in result["seconds"].items()),
    ]
    if result.get("model"):
        figures.append(("registered as", "{name}/{version} @{alias}".format(**result["model"])))
    parts = [
        f"# {job['name']} ({job['id']})",
        _table(("figure", "value"), figures),
        "![curves](curves.png)",
        "## Classes\n\n![classes](classes.png)",
        _table(("class", "IoU"), [(n, "absent" if v is None else f"{v:.4f}") for n, v in result["iou"].items()]),
    ]
    if has_sheet:
        parts.append("## Predictions\n\nPicture, truth, prediction, errors in red.\n\n![predictions](predictions.png)")
    return "\n\n".join(parts) + "\n"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [" | ".join(head), " | ".join("---" for _ in head), *(" | ".join(row) for row in rows)]
    return "\n".join(f"| {line} |" for line in lines)


def _axes(curve: Curve) -> tuple[list[int], list[float]]:
    return [step for step, _ in curve], [value for _, value in curve]


def main(arguments: list[str] | None = None) -> int:
    """Entry point; the exit code is 0, or 1 with the reason on stderr."""
    parser = argparse.ArgumentParser(prog="segfleet report", description="Tables, curves and pictures of a training.")
    parser.add_argument("job", help="id of a succeeded training job")
    parser.add_argument("--out", type=Path, help="folder for the files (default: report-JOB)")
    parser.add_argument("--json", action="store_true", help="print the files as one JSON document")
    options = parser.parse_args(arguments)
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    try:
        with Client() as client:
            job, mlflow_uri = client.job(options.job), client.status()["mlflow"]["url"]
        tracking = mlflow.MlflowClient(mlflow_uri)
        files = write_report(job, tracking, options.out or Path(f"report-{options.job}"))
    except (SegfleetError, mlflow.exceptions.MlflowException, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if options.json:
        print(json.dumps({"job": job["id"], "files": files}))
    else:
        print(Path(files["report"]).read_text(encoding="utf-8"))
        print("files: " + ", ".join(files.values()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
