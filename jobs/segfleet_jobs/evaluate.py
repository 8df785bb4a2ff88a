"""`python -m segfleet_jobs.evaluate`: score a registered model on a prepared dataset.

The driver resolves the model's name once, checks that model and dataset have the same classes, and has the group of
workers label each picture once. Then it writes pictures and tables to the run that made the model, and has the service
write the figures to the version.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from segfleet.errors import DataError, LaunchError, ModelError
from segfleet.spec.kinds import EvaluateSpec, JobSpec
from segfleet_jobs.attempt import AttemptClient, Grant, Heart, Yielded
from segfleet_jobs.charts import draw_confusion
from segfleet_jobs.evaluation import Picture, predictions, window_config
from segfleet_jobs.group import Member, run_group
from segfleet_jobs.model_record import EVALUATIONS, ModelVersion, fetch_version, find_version, log_evaluation
from segfleet_jobs.pictures import prediction_sheet
from segfleet_jobs.progress import SplitProgress
from segfleet_jobs.protocol import figure_prefix, protocol_label
from segfleet_jobs.ranks import Ranks
from segfleet_jobs.registered_model import load_registered
from segfleet_jobs.session import run_attempt
from segfleet_jobs.split_scores import class_pixels, figures, most_confused, scores_of, split_of_sizes
from segfleet_jobs.tally import Counts, Tally, read_rows, read_worst
from segfleet_models.inference import WindowConfig
from segfleet_pipelines.batch import EvalBuilder, EvalSample
from segfleet_pipelines.manifest import Manifest
from segfleet_pipelines.reader import SampleIndex
from segfleet_pipelines.verify import check_shards


@dataclass(frozen=True, slots=True)
class Plan:
    """What every worker is told.

    Attributes:
        model: Folder of the fetched version.
        shards: The dataset.
        split: Its split.
        manifest: Of the dataset when the driver looked; the workers go on with no other.
        window: Windows, scales and flip.
        precision: What the model computes in.
        num_worst: Pictures for the sheet of the worst.
        parts: Folder that all workers share, for their files.
    """

    model: Path
    shards: str
    split: str
    manifest: Manifest
    window: WindowConfig
    precision: str
    num_worst: int
    parts: Path


def work(grant: Grant, spec: JobSpec, client: AttemptClient, heart: Heart) -> dict[str, Any] | Yielded:
    """Evaluate, and write down what was found.

    Raises:
        SegfleetError: wrong data, model or spec, or the evaluation failed.
    """
    if not isinstance(spec, EvaluateSpec):
        raise LaunchError(f"job {grant.job_id} is of kind {spec.kind!r}, not evaluate")
    heart.progress({"phase": "checking data"})
    manifest = Manifest.load(spec.data.shards)
    check_shards(spec.data.shards, spec.data.split)
    version = find_version(spec.model)
    storage = Path(grant.storage)
    storage.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f"{grant.credentials.attempt_id}-files-", dir=storage) as scratch:
        heart.progress({"phase": f"fetching {version}"})
        plan = _plan(spec, version, manifest, Path(scratch))
        num_samples = manifest.split(plan.split).num_samples
        heart.progress({"phase": "starting workers", "num_steps": num_samples})
        found = run_group(grant, spec.resources, _score, {"plan": plan}, can_yield=False)
        heart.progress({"phase": "writing results", "step": num_samples, "num_steps": num_samples})
        document = _document(version, plan, found, grant.workers)
        out = Path(scratch) / "out"
        write_files(out, plan, found["counts"], document)
        values = figures(document, document["figures"])
        values[f"{document['figures']}images_per_s"] = document["samples_per_s"]
        # First what the service refuses to an attempt that is over: MLflow would take its files all the same.
        client.evaluated(version.version, values)
        log_evaluation(version, values, out, f"{EVALUATIONS}/{grant.job_id}")
    return document


def _plan(spec: EvaluateSpec, version: ModelVersion, manifest: Manifest, scratch: Path) -> Plan:
    for name in ("model", "parts", "out"):
        (scratch / name).mkdir()
    folder = fetch_version(version, scratch / "model")
    stored = load_registered(folder).stored
    check_classes(version, stored.class_names, manifest)
    return Plan(
        model=folder,
        shards=spec.data.shards,
        split=spec.data.split,
        manifest=manifest,
        window=stored.window if spec.eval is None else window_config(spec.eval),
        precision=spec.precision,
        num_worst=spec.worst,
        parts=scratch / "parts",
    )


def check_classes(version: ModelVersion, names: tuple[str, ...], manifest: Manifest) -> None:
    """Refuse a dataset whose classes are not the model's: scores would compare what has nothing in common.

    Raises:
        ModelError: other classes, or the same in another order.
    """
    if names == manifest.class_names:
        return
    pairs = zip(names, manifest.class_names, strict=False)
    first = next((i for i, (ours, theirs) in enumerate(pairs) if ours != theirs), min(len(names), manifest.num_classes))
    ours, theirs = (repr(side[first]) if first < len(side) else "none" for side in (names, manifest.class_names))
    raise ModelError(
        f"model {version} has {len(names)} classes and dataset {manifest.name!r} has {manifest.num_classes}; class "
        f"{first} is {ours} in the model and {theirs} in the dataset: evaluate on a dataset with the model's classes"
    )


def _score(member: Member, config: Mapping[str, Any]) -> dict[str, Any]:
    """One rank's part."""
    voice = member.voice
    return score_split(config["plan"], member.ranks, None if voice is None else voice.heart.progress)


def score_split(plan: Plan, ranks: Ranks, tell: Callable[[dict[str, Any]], None] | None) -> dict[str, Any]:
    """Label this rank's pictures and count.

    Args:
        plan: The same on all ranks.
        ranks: This one.
        tell: Takes progress documents; None on all ranks but the first.

    Returns:
        `counts` over all ranks, and `seconds` that the labelling took here.

    Raises:
        DataError: damaged samples, or another dataset in this place meanwhile.
    """
    manifest = plan.manifest
    model = load_registered(plan.model).stored.model.to(ranks.device)
    tally = Tally(manifest, plan.num_worst)
    progress = SplitProgress(manifest.split(plan.split).num_samples, ranks.world_size, tell)
    begin = time.perf_counter()
    labelled = predictions(
        model, plan.shards, plan.split, plan.window, manifest=manifest, ranks=ranks, precision=plan.precision
    )
    for sample, predicted in labelled:
        tally.add(sample, predicted)
        progress.done()
    counts = tally.share(plan.parts, ranks)
    return {"counts": counts, "seconds": time.perf_counter() - begin}


def _document(version: ModelVersion, plan: Plan, found: Mapping[str, Any], num_workers: int) -> dict[str, Any]:
    """The job's result."""
    counts: Counts = found["counts"]
    manifest = plan.manifest
    label = protocol_label(plan.window, plan.precision)
    sizes = split_of_sizes(manifest, plan.split)
    return {
        "model_version": str(version),
        "mlflow_run": version.run_id,
        "dataset": manifest.name,
        "split": plan.split,
        "content_id": manifest.content_id,
        "protocol": {"label": label, **asdict(plan.window), "precision": plan.precision},
        "figures": figure_prefix(manifest, plan.split, label),
        **scores_of(counts, manifest.class_names, class_pixels(plan.shards, sizes)),
        "sizes_from": sizes,
        "workers": num_workers,
        "seconds": round(found["seconds"], 3),
        "samples_per_s": round(counts.num_samples / found["seconds"], 3),
    }


def write_files(folder: Path, plan: Plan, counts: Counts, document: Mapping[str, Any]) -> None:
    """Write what is kept with the model: the scores, a row a picture, the confusion and the worst pictures.

    Args:
        folder: To write to.
        plan: Of the evaluation.
        counts: Over all ranks.
        document: The result.
    """
    manifest, num_workers = plan.manifest, document["workers"]
    rows = read_rows(plan.parts, num_workers)
    pq.write_table(rows, folder / "pictures.parquet", compression="zstd")
    scores = {**document, "class_names": list(manifest.class_names), "confusion": counts.matrix.tolist()}
    (folder / "scores.json").write_text(json.dumps(scores), encoding="utf-8")
    draw_confusion(*most_confused(counts.matrix.numpy(), manifest.class_names), folder / "confusion.png")
    miou = dict(zip(rows["index"].to_pylist(), rows["miou"].to_pylist(), strict=True))
    index = SampleIndex.load(plan.shards, plan.split)
    worst: list[Picture] = []
    for i, predicted in read_worst(plan.parts, num_workers, rows, plan.num_worst):
        sample = _read(index, i)
        worst.append((f"{sample.key}  mIoU {miou[i]:.3f}", sample.image, sample.mask, predicted))
    if worst:
        (folder / "worst.png").write_bytes(prediction_sheet(worst, manifest))


def _read(index: SampleIndex, i: int) -> EvalSample:
    sample = EvalBuilder(index)(i)
    if not isinstance(sample, EvalSample):
        raise DataError(sample.message)
    return sample


if __name__ == "__main__":
    # By its import name, or the workers would get this module's functions by value.
    from segfleet_jobs.evaluate import work as evaluate_work

    sys.exit(run_attempt(evaluate_work))
