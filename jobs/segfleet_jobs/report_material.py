"""What a report is made of: the job, MLflow's record of it, the registered model, a few pictures of the dataset.

Every part that cannot be had is noted with the reason, and the report goes on without it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
from mlflow.exceptions import MlflowException
from numpy.typing import NDArray

from segfleet.errors import SegfleetError
from segfleet_jobs.charts import Color, Curve
from segfleet_jobs.model_record import EVALUATIONS
from segfleet_jobs.registered_model import RegisteredModel
from segfleet_jobs.tracker import CONFUSION_FILE
from segfleet_pipelines.batch import EvalSample
from segfleet_pipelines.loader import eval_samples
from segfleet_pipelines.manifest import Manifest

CURVES = {"loss": "train/loss", "lr": "train/lr", "miou": "val/miou", "samples_per_s": "train/samples_per_s"}
SHEETS = "predictions"


@dataclass(frozen=True, slots=True)
class Sources:
    """Where a report's parts come from.

    Attributes:
        mlflow: Of the server that tracked the job.
        fetch_model: Loads a registered model by NAME/VERSION.
        scratch: A folder for downloads.
    """

    mlflow: mlflow.MlflowClient
    fetch_model: Callable[[str], RegisteredModel]
    scratch: Path


@dataclass(slots=True)
class Material:
    """What was found.

    Attributes:
        job: As the service describes it.
        curves: Points by curve, empty where there are none.
        sheets: (step, PNG file), the last one of the best or last step.
        class_names: As the confusion matrix has them, empty without it.
        confusion: Confusion matrix, rows are the truth.
        model: The registered model.
        samples: Pictures with truth of the split that was scored.
        tags: MLflow's tags of the run.
        missing: Part to the reason why it is not there.
    """

    job: Mapping[str, Any]
    curves: dict[str, Curve] = field(default_factory=lambda: dict.fromkeys(CURVES, ()))
    sheets: list[tuple[int | None, Path]] = field(default_factory=list)
    class_names: tuple[str, ...] = ()
    confusion: NDArray[np.int64] | None = None
    model: RegisteredModel | None = None
    samples: list[EvalSample] = field(default_factory=list)
    tags: dict[str, str] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)

    @property
    def is_training(self) -> bool:
        """Whether the job trained; otherwise it evaluated."""
        return bool(self.job["kind"] == "train")

    @property
    def dataset(self) -> str:
        """Name of the dataset that was scored; empty if unknown."""
        # The run of an evaluation is its model's, whose tags name what that was trained on.
        return str(self.tags.get("segfleet.dataset", "") if self.is_training else self.result.get("dataset", ""))

    @property
    def result(self) -> Mapping[str, Any]:
        """What the job ended with."""
        result: Mapping[str, Any] = self.job["result"]
        return result

    @property
    def palette(self) -> dict[str, Color]:
        """Colours by class name; empty if no model is at hand."""
        if self.model is None:
            return {}
        stored = self.model.stored
        return dict(zip(stored.class_names, stored.palette, strict=True))

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Whatever is missing or damaged inside is noted as this part's reason, and no more."""
        try:
            yield
        except (SegfleetError, MlflowException, OSError, ValueError, KeyError) as error:
            self.missing[name] = f"missing {error}" if isinstance(error, KeyError) else str(error)


def gather(job: Mapping[str, Any], sources: Sources, num_samples: int, say: Callable[[str], None]) -> Material:
    """Fetch all that is there.

    Args:
        job: A succeeded job with a result.
        sources: Where to look.
        num_samples: Pictures wanted of the dataset.
        say: Told of each step.
    """
    found, run_id = Material(job), str(job["result"].get("mlflow_run", ""))
    if not run_id:
        found.missing["MLflow's record"] = "the result names no MLflow run"
    else:
        say("reading curves and pictures from MLflow")
        with found.part("MLflow's record"):
            found.tags = dict(sources.mlflow.get_run(run_id).data.tags)
            found.curves = {name: _curve(sources.mlflow, run_id, key) for name, key in CURVES.items()}
        with found.part("prediction sheets"):
            found.sheets = (
                _training_sheets(sources, run_id, found) if found.is_training else _worst(sources, run_id, job)
            )
        with found.part("confusion"):
            found.class_names, found.confusion = _confusion(sources, run_id, found)
    say("loading the registered model")
    with found.part("model"):
        found.model = sources.fetch_model(model_reference(job))
    say("reading pictures of the dataset")
    with found.part("pictures of the dataset"):
        content_id = found.result.get("content_id") or found.tags.get("segfleet.content_id", "")
        found.samples = _samples(job["spec"]["data"], content_id, num_samples)
    return found


def model_reference(job: Mapping[str, Any]) -> str:
    """The registered model a job is about, as NAME/VERSION or NAME@ALIAS.

    Raises:
        ValueError: it registered none.
    """
    if job["kind"] == "evaluate":
        # What the alias stood for when the job ran.
        return str(job["result"].get("model_version") or job["spec"]["model"])
    registered = job["result"].get("model")
    if not registered:
        raise ValueError("the job registered no model (its spec has no section register)")
    return f"{registered['name']}/{registered['version']}"


def _curve(client: mlflow.MlflowClient, run_id: str, key: str) -> Curve:
    points = sorted((point.step, point.value) for point in client.get_metric_history(run_id, key))
    return [(step, value) for step, value in points if np.isfinite(value)]


def _worst(sources: Sources, run_id: str, job: Mapping[str, Any]) -> list[tuple[int | None, Path]]:
    """The sheet of an evaluation's worst pictures."""
    name = f"{EVALUATIONS}/{job['id']}/worst.png"
    return [(None, Path(sources.mlflow.download_artifacts(run_id, name, str(sources.scratch))))]


def _training_sheets(sources: Sources, run_id: str, found: Material) -> list[tuple[int | None, Path]]:
    """The first, the middle and the best sheet."""
    best_step = found.result.get("best_step")
    names = sorted(entry.path for entry in sources.mlflow.list_artifacts(run_id, SHEETS) if entry.path.endswith(".png"))
    if not names:
        raise ValueError("the run holds no sheet of predictions")
    steps = {_step(name): name for name in names}
    best = best_step if best_step in steps else max(steps, key=lambda step: step or 0)
    earlier = [step for step in steps if step is not None and best is not None and step < best]
    chosen = [*dict.fromkeys(earlier[i] for i in (0, len(earlier) // 2) if earlier), best]
    return [
        (step, Path(sources.mlflow.download_artifacts(run_id, steps[step], str(sources.scratch)))) for step in chosen
    ]


def _step(name: str) -> int | None:
    stem = Path(name).stem
    return int(stem.removeprefix("step-")) if stem.startswith("step-") and stem[5:].isdigit() else None


def _confusion(sources: Sources, run_id: str, found: Material) -> tuple[tuple[str, ...], NDArray[np.int64]]:
    if found.is_training:
        name, key = CONFUSION_FILE, "matrix"
    else:
        name, key = f"{EVALUATIONS}/{found.job['id']}/scores.json", "confusion"
    path = sources.mlflow.download_artifacts(run_id, name, str(sources.scratch))
    document = json.loads(Path(path).read_text(encoding="utf-8"))
    names, matrix = tuple(map(str, document["class_names"])), np.asarray(document[key], np.int64)
    if matrix.shape != (len(names), len(names)):
        raise ValueError(f"{name} of run {run_id} is damaged: {matrix.shape} for {len(names)} classes")
    return names, matrix


def _samples(data: Mapping[str, Any], content_id: str, count: int) -> list[EvalSample]:
    """Some pictures spread evenly over the split."""
    split = data.get("val") or data["split"]
    total = Manifest.load(data["shards"]).split(split).num_samples
    chosen = np.unique(np.linspace(0, total - 1, min(count, total)).round().astype(int)).tolist()
    # A rank of as many as there are pictures has exactly one of them.
    return [
        next(iter(eval_samples(data["shards"], split, rank=i, world_size=total, content_id=content_id))) for i in chosen
    ]
