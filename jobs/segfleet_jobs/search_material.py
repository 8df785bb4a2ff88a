"""What a search's report is made of: the job, its trials, and each trial as a run for the paper's tables."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import mlflow
from mlflow.exceptions import MlflowException
from pydantic import ValidationError

from segfleet.errors import SegfleetError, ServiceError
from segfleet.leaderboard import Standing, leaderboard
from segfleet.spec.kinds import SearchSpec, TrainSpec
from segfleet.spec.resolve import to_document
from segfleet.spec.search import final_spec, trial_spec
from segfleet_jobs.paper_table import Data, Run
from segfleet_jobs.run_plan import metric_name
from segfleet_jobs.search_variables import Variable, short_params, variables
from segfleet_jobs.split_scores import SIZES, class_pixels
from segfleet_models.class_sizes import group_miou, size_groups
from segfleet_pipelines.manifest import Manifest

Trial = Mapping[str, Any]
# So many trials at least must have a validation in common before trials are compared at it.
_LEAST_IN_COMMON = 0.5


@dataclass(slots=True)
class SearchMaterial:
    """A search as far as it has come.

    Attributes:
        job: As the service describes it.
        spec: Its spec.
        metric: What trials are compared by.
        mode: Whether `max` or `min` of it is better.
        trials: Without the final training, by number.
        final: The retraining of the best; None: there is none (yet).
        shown: What differs between the trials.
        runs: The trials that are trainings of this version, and the final one, for the paper's tables.
        missing: Part to the reason why it is not there.
    """

    job: Mapping[str, Any]
    spec: SearchSpec
    metric: str
    mode: str
    trials: tuple[Trial, ...]
    final: Trial | None
    shown: tuple[Variable, ...]
    runs: list[Run] = field(default_factory=list)
    missing: dict[str, str] = field(default_factory=dict)

    @property
    def standings(self) -> tuple[Standing, ...]:
        """The trials, the best first."""
        return leaderboard(self.trials, self.mode)

    @property
    def values(self) -> tuple[float | None, ...]:
        """Best value of each trial; None: it has failed, or shown nothing."""
        return tuple(None if trial["state"] == "failed" else trial["best_value"] for trial in self.trials)

    def name_of(self, trial: Trial) -> str:
        """Number and choice, for people."""
        if trial["kind"] == "final":
            return "final training"
        place = next(i for i, known in enumerate(self.trials) if known["number"] == trial["number"])
        return f"#{trial['number']} {short_params(self.shown, place)}".rstrip()

    def values_in_common(self) -> tuple[tuple[float | None, ...], int]:
        """Values at the last validation that enough trials have reached, and its number.

        A trial that was stopped early has had less time than others: best values would confuse its choice with that.
        """
        lengths = sorted((len(trial["reports"]) for trial in self.trials if trial["reports"]), reverse=True)
        if not lengths:
            return (None,) * len(self.trials), 0
        at = lengths[math.ceil(_LEAST_IN_COMMON * len(lengths)) - 1]
        values = [trial["reports"][at - 1]["value"] if len(trial["reports"]) >= at else None for trial in self.trials]
        return tuple(values), at


def gather_search(
    job: Mapping[str, Any], found: Mapping[str, Any], client: mlflow.MlflowClient, say: Callable[[str], None]
) -> SearchMaterial:
    """Everything that a search's report needs.

    Args:
        job: A search in any state.
        found: Its trials, metric and mode, as the service sends them.
        client: Of the server that tracked it.
        say: Told of each step.

    Raises:
        ServiceError: the job's spec is none that this version knows.
    """
    try:
        spec = SearchSpec.model_validate_json(json.dumps(job["spec"]))
    except ValidationError as error:
        raise ServiceError(f"job {job['id']} was submitted to another version, its spec is not known here") from error
    trials = tuple(trial for trial in found["trials"] if trial["kind"] == "trial")
    final = next((trial for trial in found["trials"] if trial["kind"] == "final"), None)
    shown = variables(spec, [trial["params"] for trial in trials])
    material = SearchMaterial(job, spec, found["metric"], found["mode"], trials, final, shown)
    say("reading the trials' classes from MLflow")
    scored = _Scored(client)
    for trial in (*trials, *(() if final is None else (final,))):
        try:
            trained = (
                trial_spec(spec, trial["params"]) if trial["kind"] == "trial" else final_spec(spec, trial["params"])
            )
        except SegfleetError as error:
            material.missing[f"trial {trial['number']}"] = str(error)
            continue
        if trained is not None:
            material.runs.append(scored.run(trial, trained))
    material.missing |= scored.missing
    return material


class _Scored:
    """Datasets and class scores behind the trials, each looked up once."""

    def __init__(self, client: mlflow.MlflowClient) -> None:
        self.missing: dict[str, str] = {}
        self._client, self._is_tracked = client, True
        self._manifests: dict[str, Manifest | None] = {}
        self._groups: dict[tuple[str, str], Sequence[Sequence[int]]] = {}

    def run(self, trial: Trial, spec: TrainSpec) -> Run:
        """A trial as a run; it counts with what it showed after its last step."""
        name = "final training" if trial["kind"] == "final" else f"trial {trial['number']}"
        manifest = self._manifest(spec.data.shards)
        data = None
        if manifest is not None and spec.data.val in manifest.splits:
            data = Data(manifest.name, manifest.split(spec.data.val).num_samples)
        document = to_document(spec)
        last = trial["reports"][-1] if trial["reports"] else None
        if trial["state"] != "succeeded" or last is None or last["step"] != trial["num_steps"] or last["miou"] is None:
            return Run(name, document, {}, data, _why_missing(trial))
        figures = {"miou": float(last["miou"])} | self._by_size(trial, spec, manifest)
        if trial["images_per_s"] is not None:
            figures["images_per_s"] = float(trial["images_per_s"])
        return Run(name, document, figures, data)

    def _manifest(self, shards: str) -> Manifest | None:
        if shards not in self._manifests:
            try:
                self._manifests[shards] = Manifest.load(shards)
            except (SegfleetError, OSError) as error:
                self._manifests[shards] = None
                self.missing["dataset"] = str(error)
        return self._manifests[shards]

    def _by_size(self, trial: Trial, spec: TrainSpec, manifest: Manifest | None) -> dict[str, float]:
        """mIoU of small, medium and large classes, from the run's IoU of each class after the last step."""
        if manifest is None or not trial["mlflow_run"] or not self._is_tracked:
            return {}
        try:
            metrics = self._client.get_run(trial["mlflow_run"]).data.metrics
            iou = [metrics.get(metric_name(f"val_iou/{name}"), math.nan) for name in manifest.class_names]
            if all(map(math.isnan, iou)):
                return {}
            key = (spec.data.shards, spec.data.train)
            if key not in self._groups:
                self._groups[key] = size_groups(class_pixels(*key))
            means = dict(zip(SIZES, group_miou(iou, self._groups[key]), strict=True))
        except (MlflowException, SegfleetError, OSError) as error:
            # Not asked again for every other trial: a server that is away takes minutes to say so.
            self._is_tracked = False
            self.missing["classes by size"] = str(error)
            return {}
        return {size: value for size, value in means.items() if math.isfinite(value)}


def _why_missing(trial: Trial) -> str:
    if trial["state"] == "failed":
        return "missing: failed"
    if trial["state"] == "stopped":
        return f"missing: stopped at step {trial['step']:,} of {trial['num_steps']:,}"
    if trial["state"] == "succeeded":
        return "missing: no value after the last step"
    return f"missing: {trial['state']}, step {trial['step']:,} of {trial['num_steps']:,}"
