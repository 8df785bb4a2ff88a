"""`python -m segfleet_jobs.report`: what a finished job did, as one HTML page, its pictures and a JSON document."""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import mlflow

from segfleet.client import Client
from segfleet.errors import DataError, SegfleetError, ServiceError
from segfleet_jobs import report_sections as parts
from segfleet_jobs.charts import largest_confusions
from segfleet_jobs.paper import compare
from segfleet_jobs.registered_model import fetch_registered
from segfleet_jobs.report_material import Material, Sources, gather
from segfleet_jobs.report_page import Page, SectionOfPage, Table, as_text, render
from segfleet_jobs.search_report import write_search_report
from segfleet_jobs.search_sections import BESIDE
from segfleet_pipelines.photo import read_photo
from segfleet_pipelines.picture import MAX_PIXELS, Pixels

NUM_ATTENTION_PICTURES = 2


def write_report(
    job: Mapping[str, Any], sources: Sources, out: Path, pictures: Sequence[Path] = ()
) -> tuple[dict[str, Any], Page]:
    """Write report.html, report.json and the pictures.

    Args:
        job: A succeeded training or evaluation as the service describes it.
        sources: Where its parts are.
        out: Folder for the files, made if it is not there.
        pictures: Pictures to draw attention maps on; none: some of the dataset's.

    Returns:
        The content of report.json, and the page.

    Raises:
        ServiceError: the job has no result to report.
        DataError: a given picture cannot be read.
        OSError: the folder cannot be written to.
    """
    if job["kind"] not in ("train", "evaluate") or "miou" not in (job.get("result") or {}):
        raise ServiceError(
            f"job {job['id']} is a {job['kind']} job in state {job['state']}; "
            "a report needs a succeeded training or evaluation"
        )
    own: list[parts.Shown] = [(path.name, _read(path), None) for path in pictures]
    out.mkdir(parents=True, exist_ok=True)
    found = gather(job, sources, 0 if own else NUM_ATTENTION_PICTURES, _say)
    shown = own or [(sample.key, sample.image, sample.mask) for sample in found.samples]
    page = Page(
        str(job["name"]), f"{job['kind']} {job['id']}, {job['state']}", key_figures(found), _sections(found, out, shown)
    )
    _say("writing the page")
    (out / "report.html").write_text(render(page), encoding="utf-8")
    document = _document(found, page, out)
    (out / "report.json").write_text(json.dumps(document, indent=1), encoding="utf-8")
    return document, page


def _sections(found: Material, out: Path, pictures: Sequence[parts.Shown]) -> list[SectionOfPage]:
    makers: dict[str, Callable[[], SectionOfPage]] = {
        "curves": lambda: parts.curves_section(found, out),
        "classes": lambda: parts.classes_section(found, out),
        "sizes and boundaries": lambda: parts.sizes_section(found),
        "confusion": lambda: parts.confusion_section(found, out),
        "predictions": lambda: parts.predictions_section(found, out),
        "attention maps": lambda: parts.attention_section(found, out, pictures),
        "class embeddings": lambda: parts.embeddings_section(found, out),
        "time": lambda: parts.time_section(found, out),
        "comparison with the paper": lambda: parts.paper_section(found),
        "spec": lambda: parts.spec_section(found),
    }
    for name in ("sizes and boundaries",) if found.is_training else ("curves", "time"):
        del makers[name]
    sections = []
    for number, (name, make) in enumerate(makers.items(), start=1):
        _say(f"{name} ({number} of {len(makers)})")
        sections.append(make())
    return sections


def key_figures(found: Material) -> list[tuple[str, str]]:
    """Name and value of what a reader wants first."""
    spec, result = found.job["spec"], found.result
    miou, baseline = result["miou"], result["baseline_miou"]
    at = f" at step {result['best_step']}" if found.is_training else ""
    times = f" ({miou / baseline:.1f} times)" if miou is not None and baseline else ""
    return [
        ("mIoU", parts.score(miou) + at),
        ("always the commonest class", parts.score(baseline) + times),
        ("pixel accuracy", parts.score(result["pixel_accuracy"])),
        ("mean class accuracy", parts.score(result["mean_accuracy"])),
        ("pictures scored", str(result["num_samples"])),
        ("dataset", found.dataset or Path(spec["data"]["shards"]).name),
        *(_training_figures(found) if found.is_training else _evaluation_figures(found)),
        ("workers", str(spec["resources"]["workers"])),
    ]


def _evaluation_figures(found: Material) -> list[tuple[str, str]]:
    result = found.result
    return [
        ("boundary mIoU", parts.score(result["boundary_miou"])),
        ("model", result["model_version"]),
        ("split", result["split"]),
        ("protocol", result["protocol"]["label"]),
        ("seconds", f"{result['seconds']:.1f} ({result['samples_per_s']:.2f} pictures/s)"),
    ]


def _training_figures(found: Material) -> list[tuple[str, str]]:
    spec, result = found.job["spec"], found.result
    model, loop = spec["model"], spec["train"]
    speed = [value for _, value in found.curves["samples_per_s"]]
    decoder = f", {model['decoder']} decoder" if model["decoder"] else ""
    figures = [
        ("model", f"{model['variant'] or model.get('arch', '')} ({model['backbone']}{decoder})"),
        ("parameters", f"{result['num_parameters']:,}"),
        ("steps, global batch, crop", f"{loop['steps']}, {loop['global_batch']}, {loop['crop']}"),
        ("training samples/s (median)", f"{median(speed):.2f}" if speed else "-"),
        ("skipped steps", str(result["skipped_steps"])),
    ]
    if result.get("model"):
        figures.append(("registered as", "{name}/{version} @{alias}".format(**result["model"])))
    return figures


def _document(found: Material, page: Page, out: Path) -> dict[str, Any]:
    """report.json: everything on the page that is not a picture, and the files."""
    scored = parts.scored_as(found)
    rows = [] if isinstance(scored, str) else compare(scored)[0]
    confusions = [] if found.confusion is None else largest_confusions(found.confusion, found.class_names)
    pictures = [picture.path for section in page.sections for picture in section.pictures]
    return {
        "job": found.job["id"],
        "name": found.job["name"],
        "kind": found.job["kind"],
        "result": dict(found.result),
        "goodput": found.job.get("goodput"),
        "figures": dict(page.figures),
        "largest_confusions": [
            {"truth": truth, "prediction": taken, "share_of_class": share, "share_of_errors": of_errors}
            for truth, taken, share, of_errors in confusions
        ],
        "paper": [
            {"table": row.table, "variant": row.variant, "scales": row.scales, "ours": row.ours, "paper": row.paper}
            for row in rows
        ],
        "missing": {section.title: section.missing for section in page.sections if section.missing},
        "files": {
            "report": str(out / "report.html"),
            "document": str(out / "report.json"),
            **{path.stem: str(path) for path in pictures},
        },
    }


def _read(path: Path) -> Pixels:
    try:
        return read_photo(path, MAX_PIXELS)
    except (OSError, DataError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise DataError(f"picture {str(path)!r}: {reason}") from error


def _say(text: str) -> None:
    print(f"report: {text}", file=sys.stderr, flush=True)


def main(arguments: list[str] | None = None) -> int:
    """Entry point; the exit code is 0, or 1 with the reason on stderr."""
    parser = argparse.ArgumentParser(prog="segfleet report", description="A page of figures, curves and pictures.")
    parser.add_argument("job", help="id of a succeeded training or evaluation, or of a search")
    parser.add_argument("--out", type=Path, help="folder for the files (default: report-JOB)")
    parser.add_argument(
        "--picture", type=Path, action="append", default=[], help="show attention on this picture; may be repeated"
    )
    parser.add_argument("--json", action="store_true", help="print the files as one JSON document")
    options = parser.parse_args(arguments)
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    try:
        with Client() as client:
            job, mlflow_uri = client.job(options.job), client.status()["mlflow"]["url"]
            trials = client.trials(options.job) if job["kind"] == "search" else None
        if trials is not None and options.picture:
            print("error: --picture is for trainings and evaluations; a search shows no attention", file=sys.stderr)
            return 2
        tracked, out = mlflow.MlflowClient(mlflow_uri), options.out or Path(f"report-{options.job}")
        if trials is not None:
            document, page = write_search_report(job, trials, tracked, out, _say)
        else:
            with tempfile.TemporaryDirectory(prefix="segfleet-report-") as scratch:
                sources = Sources(tracked, fetch_registered, Path(scratch))
                document, page = write_report(job, sources, out, options.picture)
    except (SegfleetError, mlflow.exceptions.MlflowException, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if options.json:
        short = {name: document[name] for name in ("job", "files", "missing")}
        print(json.dumps(short if trials is None else document))
    else:
        print("\n".join(as_text(Table(page.figures[0], page.figures[1:]))))
        for section in page.sections if trials is not None else ():
            if section.title.startswith(BESIDE) and section.tables:
                print("\n".join(["", section.title, *as_text(section.tables[0]), section.text, ""]))
        for title, reason in document["missing"].items():
            print(f"not shown: {title}: {reason}")
        print(f"report: {document['files']['report']}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
