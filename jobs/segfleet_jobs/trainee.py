"""What is trained: the model in all its wrappings, its optimiser and mean weights, and how a checkpoint holds them."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from segfleet.errors import Problem, SpecError
from segfleet.spec.kinds import TrainSpec
from segfleet_jobs.checkpoint import Checkpoint, optimizer_tensors, restore_optimizer
from segfleet_jobs.ema import WeightAverage
from segfleet_jobs.optim import build_optimizer, set_training_mode
from segfleet_jobs.ranks import Ranks
from segfleet_jobs.step import TrainStep
from segfleet_models.build import ModelConfig, build_segmenter
from segfleet_models.segmenter import SegmentationModel
from segfleet_pipelines.manifest import Manifest

# Where a checkpoint's state has the raw weights, when its model is their mean.
_RAW = "weights/"


def check_class_weights(spec: TrainSpec, manifest: Manifest) -> None:
    """Make sure that there is one weight a class.

    Raises:
        SpecError: there is not; names both numbers.
    """
    weights, num_classes = spec.loss.class_weights, len(manifest.class_names)
    if weights is not None and len(weights) != num_classes:
        what = f"{len(weights)} weights for the {num_classes} classes of {manifest.name}"
        raise SpecError([Problem("loss.class_weights", what, "give one a class, in the order of the manifest")])
    if weights is not None and not any(weights):
        raise SpecError([Problem("loss.class_weights", "all are 0: nothing would be learned", "raise one")])


class Trainee:
    """Built from a spec, or as a checkpoint has left it.

    Attributes:
        model: The plain model; its state-dict keys are those of checkpoints, whatever it is wrapped in.
        step: Trains it.
    """

    def __init__(
        self, spec: TrainSpec, config: ModelConfig, ignore_index: int, ranks: Ranks, checkpoint: Checkpoint | None
    ) -> None:
        self._spec, self._ranks = spec, ranks
        torch.manual_seed(spec.train.seed)
        model = build_segmenter(config, pretrained=spec.model.pretrained if checkpoint is None else False)
        self.model = _on_device(model, spec, ranks)
        self._optimizer = build_optimizer(self.model, spec.optim)
        self._average = None if spec.train.ema is None else WeightAverage(self.model, spec.train.ema)
        if checkpoint is not None:
            self._restore(checkpoint)
        parallel = _wrap(self.model, spec, ranks)
        self.step = TrainStep(self.model, parallel, self._optimizer, spec, ignore_index, ranks, self._average)
        set_training_mode(self.model, spec.optim)

    @property
    def validated(self) -> SegmentationModel:
        """The model that is validated and registered: the mean of the weights, if one is kept."""
        return self.model if self._average is None else self._average.model

    def before_validation(self) -> None:
        """Give every rank rank 0's buffers: without SyncBatchNorm, each has seen its own pictures last."""
        for buffer in self.validated.buffers():
            self._ranks.copy_from_main_(buffer)

    def after_validation(self) -> None:
        """Back to training; validation does not know of a frozen encoder."""
        set_training_mode(self.model, self._spec.optim)

    def weights(self) -> dict[str, Tensor]:
        """What is validated: the tensors themselves, which the next step changes."""
        return dict(self.validated.state_dict())

    def state(self) -> dict[str, Tensor]:
        """All else that goes on from here: the optimiser, and the raw weights beside their mean."""
        raw = {} if self._average is None else {f"{_RAW}{name}": t for name, t in self.model.state_dict().items()}
        return optimizer_tensors(self.model, self._optimizer) | raw

    def _restore(self, checkpoint: Checkpoint) -> None:
        raw = {name.removeprefix(_RAW): t for name, t in checkpoint.state.items() if name.startswith(_RAW)}
        self.model.load_state_dict(raw or checkpoint.model)
        restore_optimizer(self.model, self._optimizer, checkpoint.state)
        if self._average is not None:
            self._average.load(checkpoint.model)


def _on_device(model: SegmentationModel, spec: TrainSpec, ranks: Ranks) -> SegmentationModel:
    model = model.to(ranks.device)
    if spec.train.channels_last:
        model = model.to(memory_format=torch.channels_last)
    if spec.train.checkpoint_activations:
        model.set_checkpoint_activations(True)
    if ranks.world_size > 1 and ranks.device.type == "cuda":
        model = cast(SegmentationModel, nn.SyncBatchNorm.convert_sync_batchnorm(model))  # type: ignore[no-untyped-call]
    return model


def _wrap(model: SegmentationModel, spec: TrainSpec, ranks: Ranks) -> nn.Module:
    parallel: nn.Module = model
    if ranks.world_size > 1:
        device_ids = [ranks.device] if ranks.device.type == "cuda" else None
        parallel = nn.parallel.DistributedDataParallel(model, device_ids=device_ids, gradient_as_bucket_view=True)
        if not spec.train.compile:  # which has no place for such calls
            # DDP begins a forward with a broadcast of the buffers: to wait there for a straggler is not to be one.
            parallel.register_forward_pre_hook(lambda *_: ranks.pulse.wait())
            model.register_forward_pre_hook(lambda *_: ranks.pulse.go_on())
    # Compiled last and beside the plain model: validation has other sizes and stays as it is.
    return cast(nn.Module, torch.compile(parallel)) if spec.train.compile else parallel
