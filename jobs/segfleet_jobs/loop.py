"""The training loop of one rank: build, resume, step, validate, checkpoint. Knows neither Ray nor the service.

The order of samples, the augmentation and the learning rate are functions of the step alone; weights, optimiser, random
states and the samples left out as damaged come from the checkpoint. So a resumed run goes on at the exact next sample
and, with the same number of ranks, ends with the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from segfleet.errors import CheckpointError
from segfleet.spec.kinds import TrainSpec
from segfleet.spec.resolve import to_document
from segfleet_jobs.attempt import Yielded
from segfleet_jobs.checkpoint import Checkpoint, CheckpointRecord
from segfleet_jobs.checkpoint_store import CheckpointStore, FolderStore, discard_earlier, load_latest, load_place
from segfleet_jobs.checkpoint_writer import CheckpointWriter
from segfleet_jobs.continuity import check_same_data, check_same_spec, same_skips
from segfleet_jobs.evaluation import Picture, evaluate, scores_document
from segfleet_jobs.progress import Progress
from segfleet_jobs.random_state import gather_random_states, untouched_random_state
from segfleet_jobs.ranks import Ranks
from segfleet_jobs.step import LaunchedStep, StepResult, where_nonfinite
from segfleet_jobs.trainee import Trainee, check_class_weights
from segfleet_models.build import ModelConfig
from segfleet_pipelines.batch import Batch, Skips
from segfleet_pipelines.loader import train_loader
from segfleet_pipelines.manifest import Manifest

NUM_PICTURES = 6
# Odd and near the golden section of 2**32, of which alone the CPU's generator takes its seed.
_SEED_STRIDE = 2_654_435_769


class Link(Protocol):
    """Where rank 0 tells the world, and learns where to resume; other ranks are given one that does nothing."""

    def latest_checkpoint(self) -> dict[str, Any] | None:
        """The job's checkpoint pointer."""

    def set_checkpoint(self, record: CheckpointRecord) -> None:
        """Move the pointer; called by another thread than the rest."""

    def damaged(self, message: str) -> None:
        """A checkpoint was passed over, or cannot be written yet; called by any thread."""

    def progress(self, document: dict[str, Any]) -> None:
        """What the job is at."""

    def metrics(self, step: int, values: dict[str, float]) -> None:
        """A point of each curve."""

    def pictures(self, step: int, pictures: tuple[Picture, ...], manifest: Manifest) -> None:
        """Sample predictions."""

    def confusion(self, step: int, matrix: Tensor, manifest: Manifest) -> None:
        """The confusion matrix of the best validation so far."""

    def must_yield(self) -> bool:
        """Whether the attempt was asked to write a checkpoint and end."""


class TrainingLoop:
    """One rank's training from wherever the job stands to its last step.

    `skips` are the samples to leave out of each dataset, as decided before the first step; those of a checkpoint win.
    `content_ids` are what each dataset held then, so that all ranks train on what was checked. `store` is where the
    checkpoints lie, if it is not in the job's folder.
    """

    def __init__(
        self,
        spec: TrainSpec,
        ranks: Ranks,
        link: Link,
        job_folder: Path,
        attempt_folder: Path,
        report: Callable[[dict[str, Any]], None],
        skips: Skips = (),
        content_ids: Sequence[str] = (),
        store: CheckpointStore | None = None,
    ) -> None:
        self._spec, self._ranks, self._link, self._report = spec, ranks, link, report
        self._store = store or FolderStore(job_folder, attempt_folder)
        self._writer = CheckpointWriter(self._store, link.set_checkpoint, link.damaged)
        self._manifests = tuple(Manifest.load(source.shards) for source in spec.data.sources)
        self._manifest = self._manifests[0]
        check_class_weights(spec, self._manifest)
        self._skips = tuple(skips) or (frozenset[int](),) * len(self._manifests)
        self._content_ids = tuple(content_ids) or tuple(manifest.content_id for manifest in self._manifests)
        self._best: dict[str, Any] | None = None
        self._latest_scores: dict[str, Any] | None = None
        self._skipped_steps = self._skipped_samples = 0
        self._progress = Progress(spec.train, link.progress)
        self._launched: LaunchedStep | None = None
        self._latest_result: StepResult | None = None

    def run(self) -> dict[str, Any] | Yielded:
        """Train to the last step, or to where the attempt is asked to make room.

        Returns:
            The best validation's scores, its step and checkpoint folder, and where the time went; or the step of the
            checkpoint that was written to make room.
        """
        checkpoint = self._find_checkpoint()
        start_step = checkpoint.step if checkpoint else 0
        self._build(checkpoint)
        batches = iter(
            train_loader(
                self._spec.data,
                self._spec.augment,
                self._spec.train,
                rank=self._ranks.rank,
                world_size=self._ranks.world_size,
                start_step=start_step,
                skips=self._skips,
                content_ids=self._content_ids,
                pin_memory=self._ranks.device.type == "cuda",
            )
        )
        if self._ranks.world_size > 1:
            # DDP orders its gradient buckets anew after the first backward, and with three ranks or more the order
            # decides the sums' last bits: a resumed run must not begin with another order than the whole one had.
            self._train_step.warm_up(self._spec.train.crop)
        # Only now: what came before drew from torch's random state.
        self._seed(checkpoint)
        del checkpoint  # as large as the model and its optimiser
        self._progress.start(start_step, self._latest_scores)
        with self._writer:
            for step in range(start_step, self._spec.train.steps):
                if self._step(step, batches):
                    return Yielded(step + 1)
            return self._result()

    def _find_checkpoint(self) -> Checkpoint | None:
        checkpoint = self._load()
        if checkpoint is not None:
            check_same_spec(checkpoint.meta["spec"], to_document(self._spec))
            check_same_data(checkpoint.meta["content_ids"], self._manifests, self._spec.data.sources)
            self._skips = same_skips(checkpoint.meta["left_out"], self._skips, self._spec.data.sources)
        elif self._ranks.is_main:
            discard_earlier(self._store)
        return checkpoint

    def _load(self) -> Checkpoint | None:
        """Rank 0 decides which checkpoint it is: machines may differ in what they find damaged."""
        found = None
        if self._ranks.is_main:
            pointer = self._link.latest_checkpoint()
            record = CheckpointRecord.from_dict(pointer) if pointer else None
            found, damaged = load_latest(self._store, record)
            for message in damaged:
                self._link.damaged(f"passed over: {message}")
        place = self._ranks.share(None if found is None else (found.address, found.sha256))
        return found or (load_place(self._store, *place) if place else None)

    def _build(self, checkpoint: Checkpoint | None) -> None:
        spec, manifest = self._spec, self._manifest
        self._config = model_config(spec, len(manifest.class_names))
        self._trainee = Trainee(spec, self._config, manifest.ignore_index, self._ranks, checkpoint)
        self._train_step = self._trainee.step
        if checkpoint is not None:
            meta = checkpoint.meta
            self._best, self._latest_scores = meta["best"], meta["scores"]
            self._skipped_steps, self._skipped_samples = meta["skipped_steps"], meta["skipped_samples"]
            self._train_step.skipped_in_a_row = meta["skipped_in_a_row"]
            if meta["scaler"]:
                self._train_step.scaler.load_state_dict(meta["scaler"])

    def _seed(self, checkpoint: Checkpoint | None) -> None:
        """Every rank has its own stream for dropout and stochastic depth.

        A rank that the group did not have when the checkpoint was written begins one that no earlier step drew from.
        """
        rank, start = self._ranks.rank, checkpoint.step if checkpoint else 0
        torch.manual_seed(self._spec.train.seed * 1_000_003 + 1 + rank + start * _SEED_STRIDE)
        if checkpoint is None:
            return
        if f"random/cpu/{rank}" in checkpoint.state:
            torch.set_rng_state(checkpoint.state[f"random/cpu/{rank}"])
        if self._ranks.device.type == "cuda" and f"random/cuda/{rank}" in checkpoint.state:
            torch.cuda.set_rng_state(checkpoint.state[f"random/cuda/{rank}"], self._ranks.device)

    def _step(self, step: int, batches: Iterator[Batch]) -> bool:
        """One step with all that is due after it; True: the attempt ends here, its checkpoint is written."""
        pulse = self._ranks.pulse
        pulse.begin_step(step)
        self._collect()
        with self._progress.timed("data"):
            batch = next(batches)
        pulse.enter("forward")
        done, loop = step + 1, self._spec.train
        validates = done % loop.validate_every == 0 or done == loop.steps
        checkpoints = validates or done % loop.checkpoint_every == 0
        logs = done % loop.log_every == 0 or done == loop.steps
        with self._progress.timed("step"):
            before, self._launched = self._launched, self._train_step.launch(batch, self._link.must_yield())
            pulse.end_step()
            results = [self._train_step.read(before)] if before else []
            # The step itself is waited for only where something is due that needs it, or the one before asks to end,
            # or nothing is known yet.
            is_due = validates or checkpoints or logs or self._latest_result is None
            if is_due or any(result.must_yield for result in results):
                results.append(self._train_step.read(self._launched))
                self._launched = None
        self._count_skipped(results)
        self._skipped_samples += batch.num_skipped
        self._latest_result = result = results[-1] if results else self._latest_result
        if result is not None:
            self._progress.stepped(done, result.loss, result.lr)
        if logs and result is not None:
            self._log(done, result)
        if validates:
            self._validate(done)
        ends_here = any(result.must_yield for result in results) and done < loop.steps
        if ends_here or checkpoints:
            self._checkpoint(done, is_last=ends_here or done == loop.steps)
        return ends_here

    def _count_skipped(self, results: Sequence[StepResult]) -> None:
        for result in results:
            if not result.is_applied:
                self._skipped_steps += 1
                self._progress.skipped(self._skipped_steps, result.nonfinite_ranks)
                if self._ranks.is_main:
                    where = where_nonfinite(result.nonfinite_ranks, self._ranks.world_size)
                    print(f"segfleet: skipped {self._skipped_steps} steps as not finite so far; {where}", flush=True)

    def _log(self, done: int, result: StepResult) -> None:
        values = {
            "train/loss": result.loss,
            "train/lr": result.lr,
            "train/valid_pixels": float(result.num_valid),
            "train/skipped_steps": float(self._skipped_steps),
            "train/skipped_samples": float(self._skipped_samples),
            "train/samples_per_s": self._progress.samples_per_s,
        }
        values |= {f"time/{part}_s": seconds for part, seconds in self._progress.seconds.items()}
        with self._progress.timed("mlflow"):
            self._link.metrics(done, values)

    def _validate(self, done: int) -> None:
        with self._progress.timed("validation"), untouched_random_state(self._ranks.device):
            self._trainee.before_validation()
            result = evaluate(
                self._trainee.validated,
                self._spec.data.shards,
                self._spec.data.val,
                self._spec.eval,
                manifest=self._manifest,
                ranks=self._ranks,
                num_pictures=NUM_PICTURES if self._ranks.is_main else 0,
                progress=self._progress.validating,
            )
            self._trainee.after_validation()
        self._latest_scores = scores_document(result, tuple(self._manifest.class_names))
        if self._best is None or self._latest_scores["miou"] > self._best["miou"]:
            self._best = {"step": done, **self._latest_scores}
            with self._progress.timed("mlflow"):
                self._link.confusion(done, result.matrix, self._manifest)
        self._progress.validated(self._latest_scores["miou"])
        values = {f"val/{name}": self._latest_scores[name] for name in ("miou", "pixel_accuracy", "mean_accuracy")}
        iou = {f"val_iou/{name}": value for name, value in self._latest_scores["iou"].items() if value is not None}
        with self._progress.timed("mlflow"):
            self._link.metrics(done, values | iou)
            self._link.pictures(done, result.pictures, self._manifest)

    def _checkpoint(self, done: int, *, is_last: bool) -> None:
        self._ranks.pulse.enter("checkpoint")
        with self._progress.timed("checkpoint"):
            random_states = gather_random_states(self._ranks)
            if self._ranks.is_main:
                self._collect(wait=True)
                self._save(done, random_states)
            self._report({"step": done, "miou": self._latest_scores["miou"] if self._latest_scores else None})
            self._collect(wait=is_last)

    def _collect(self, *, wait: bool = False) -> None:
        if record := self._writer.collect(wait=wait):
            self._progress.saved(record.step)

    def _save(self, done: int, random_states: dict[str, Tensor]) -> None:
        meta = {
            "spec": to_document(self._spec),
            "model": self._config.to_dict(),
            "class_names": list(self._manifest.class_names),
            "content_ids": [manifest.content_id for manifest in self._manifests],
            "left_out": [sorted(skips) for skips in self._skips],
            "world_size": self._ranks.world_size,
            "best": self._best,
            "scores": self._latest_scores,
            "skipped_steps": self._skipped_steps,
            "skipped_samples": self._skipped_samples,
            "skipped_in_a_row": self._train_step.skipped_in_a_row,
            "scaler": self._train_step.scaler.state_dict(),
        }
        self._writer.start(done, self._trainee.weights(), self._trainee.state() | random_states, meta)

    def _result(self) -> dict[str, Any]:
        if self._best is None:
            raise CheckpointError("the training ended without a validation")  # unreachable: the last step validates
        best = {name: value for name, value in self._best.items() if name != "step"}
        seconds = {part: round(value, 3) for part, value in self._progress.seconds.items()}
        return {
            "step": self._spec.train.steps,
            "best_step": self._best["step"],
            **best,
            "skipped_steps": self._skipped_steps,
            "skipped_samples": self._skipped_samples,
            "num_parameters": sum(parameter.numel() for parameter in self._trainee.model.parameters()),
            "seconds": seconds,
        }


def model_config(spec: TrainSpec, num_classes: int) -> ModelConfig:
    """The model a spec describes for a dataset's number of classes."""
    model = spec.model
    return ModelConfig(
        backbone=model.backbone,
        patch_size=model.patch_size,
        decoder=model.decoder,
        num_classes=num_classes,
        img_size=spec.train.crop,
        decoder_layers=model.decoder_layers,
        drop_path=model.drop_path,
        dropout=model.dropout,
        decoder_drop_path=model.decoder_drop_path,
        decoder_dropout=model.decoder_dropout,
        arch=model.arch,
        decoder_norm=model.decoder_norm,
    )
