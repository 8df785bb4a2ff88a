"""Size and speed of a search's models, measured for all in the same way: one after the other, by one worker, when
nothing else of the job runs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from segfleet.errors import SpecError
from segfleet.spec.kinds import TrainSpec
from segfleet.spec.resolve import resolve_spec, to_document
from segfleet.spec.search import trial_spec
from segfleet_jobs.attempt import AttemptClient, Heart, Yielded
from segfleet_jobs.group import Member, OneOfMany, run_group
from segfleet_jobs.measuring import CPU_BATCH, in_fresh_process
from segfleet_jobs.trial import Search
from segfleet_pipelines.manifest import Manifest

_STEPS = 5
# What changes neither size nor speed.
_WITHOUT_WEIGHT = {"dropout", "drop_path", "decoder_dropout", "decoder_drop_path", "pretrained", "variant"}
_OF_THE_STEP = (
    "crop",
    "global_batch",
    "micro_batch",
    "precision",
    "ema",
    "compile",
    "checkpoint_activations",
    "channels_last",
)


@dataclass(frozen=True, slots=True)
class Figures:
    """What is found out of a model.

    Attributes:
        parameters: Their number.
        images_per_s: Forward passes over pictures of the size of the training's crop, as the paper measures; a
            baseline's window may be a whole picture.
        peak_memory_mib: Of a worker's training step, over the loaded model; None where the system doesn't tell.
    """

    parameters: int
    images_per_s: float
    peak_memory_mib: float | None


def protocol(spec: TrainSpec) -> str:
    """How these figures are measured, in a sentence for people."""
    if spec.resources.gpus_per_worker:
        batch = "as many pictures at once as fit on the GPU"
    else:
        batch = f"{CPU_BATCH} pictures at once on {spec.resources.cpus_per_worker} CPU threads"
    return (
        f"images/s: forward pass at the size of train.crop, {batch}, median of {_STEPS}; "
        "peak memory: a training step of one worker, over the loaded model"
    )


def model_key(spec: TrainSpec) -> str:
    """The same for two trainings whose models have the same size and speed."""
    model = {key: value for key, value in to_document(spec)["model"].items() if key not in _WITHOUT_WEIGHT}
    step = {name: getattr(spec.train, name) for name in _OF_THE_STEP}
    step |= {"optim": spec.optim.name, "workers": spec.resources.min_workers, "frozen": not spec.optim.encoder_lr_scale}
    return json.dumps({"model": model, "step": step}, sort_keys=True)


def measure_models(
    search: Search, trials: Sequence[Mapping[str, Any]], client: AttemptClient, heart: Heart
) -> Yielded | None:
    """Measure the model of each trial that has not failed, each distinct one once, and note the figures.

    Args:
        search: The search, no trial of which runs.
        trials: As recorded; what is measured already is not measured again.
        client: Of the attempt.
        heart: Of the driver.

    Returns:
        None: all is measured, but for what cannot be.
    """
    by_key: dict[str, list[Mapping[str, Any]]] = {}
    specs: dict[str, TrainSpec] = {}
    for trial in trials:
        spec = _spec_of(search, trial)
        if spec is not None and trial["state"] != "failed":
            specs.setdefault(key := model_key(spec), spec)
            by_key.setdefault(key, []).append(trial)
    jobs = []
    for key, same in by_key.items():
        known = next((trial for trial in same if trial["images_per_s"] is not None), None)
        numbers = [trial["number"] for trial in same if trial["images_per_s"] is None]
        if known is not None:
            _note(client, numbers, Figures(*(known[name] for name in Figures.__slots__)))
        elif numbers:
            jobs.append({"numbers": numbers, "spec": to_document(specs[key])})
    if not jobs:
        return None
    heart.progress({"phase": "measuring models", "step": 0, "num_steps": len(jobs), "eta_s": None})
    base = search.spec.base
    config = {
        "jobs": jobs,
        "num_classes": Manifest.load(base.data.shards).num_classes,
        "threads": base.resources.cpus_per_worker,
    }
    name = f"{search.grant.credentials.attempt_id}-measure{sum(len(trial['reports']) for trial in trials)}"
    alone = base.resources.model_copy(update={"workers": 1})
    one = OneOfMany(name, f"{search.grant.storage}/measured", "measure", can_yield=False)
    return run_group(search.grant, alone, _measure_all, config, one)


def _spec_of(search: Search, trial: Mapping[str, Any]) -> TrainSpec | None:
    try:
        return trial_spec(search.spec, trial["params"])
    except SpecError:
        return None


def _measure_all(member: Member, config: Mapping[str, Any]) -> Yielded | None:
    """In the one worker."""
    assert member.voice is not None
    for done, job in enumerate(config["jobs"]):
        if member.voice.heart.must_yield:
            return Yielded(done)
        member.voice.heart.progress({"phase": "measuring models", "step": done, "num_steps": len(config["jobs"])})
        figures = _try_to_measure(job, config)
        if figures is not None:
            _note(member.voice.client, job["numbers"], figures)
    return None


def _note(client: AttemptClient, numbers: Sequence[int], figures: Figures) -> None:
    for number in numbers:
        client.trial(number).measured(
            parameters=figures.parameters,
            images_per_s=figures.images_per_s,
            peak_memory_mib=figures.peak_memory_mib,
        )


def _try_to_measure(job: Mapping[str, Any], config: Mapping[str, Any]) -> Figures | None:
    try:
        return in_fresh_process(measure_model, job["spec"], config["num_classes"], config["threads"])
    except Exception as error:
        # No figure is worth the search: all its trials are done.
        numbers = ", ".join(map(str, job["numbers"]))
        print(f"segfleet: the model of trials {numbers} cannot be measured: {error}", flush=True)
        return None


def measure_model(document: Mapping[str, Any], num_classes: int, threads: int) -> Figures:
    """Measure one model in this process, in which nothing has run before.

    Args:
        document: The training's spec.
        num_classes: K.
        threads: Of the CPU, where there is no GPU.
    """
    # Only here, in a process of its own: driver and worker of the measurement need none of the model's code.
    from segfleet_jobs.bench_model import Task, measure

    torch.set_num_threads(threads)
    spec = resolve_spec(document)
    assert isinstance(spec, TrainSpec)
    share = spec.train.global_batch // spec.resources.min_workers
    step = measure(Task("trial", spec, num_classes, "train", share, _STEPS))
    forward = measure(Task("trial", spec, num_classes, "forward", None, _STEPS))
    return Figures(step.parameters, round(forward.images_per_s, 4), step.peak_mib)
